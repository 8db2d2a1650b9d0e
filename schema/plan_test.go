package schema

import "testing"

// TestMemoryBytes: a schema may give another expression, which may need what a
// configuration does not set.
func TestMemoryBytes(t *testing.T) {
	d := Default().For("production").Defaults()
	if n, ok := Default().For("production").MemoryBytes(d); !ok || n < 1<<20 || n > 4<<20 {
		t.Errorf("the defaults take %d bytes, %v", n, ok)
	}
	for expression, want := range map[string]int64{"4096 * esn_reservoir_size": 4096 * 512, "1e6": 1e6, "0.5 * budget": 2} {
		rules := mustParse(t, extends+`#Parameters: {
	budget?: int & >=1 & <=9 @dtesn(description="B")
	#memory_bytes: `+expression+`
}
#defaults: budget: 5
`).For("production")
		with := d.With("budget", Int(5)).With("unknown", Bool(true))
		if n, ok := rules.MemoryBytes(with); !ok || n != want {
			t.Errorf("%s: %d, %v; want %d", expression, n, ok, want)
		}
		if _, ok := rules.MemoryBytes(d); ok != (expression != "0.5 * budget") {
			t.Errorf("%s without a budget: ok is %v", expression, ok)
		}
	}
}
