package cli

import (
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"dtesn-agent/schema"
)

const oddTexts = `package dtesn

#extends: "dtesn"
#Parameters: {
	style?: "plain" | "yes" | "12" | "true" | "null" | "a.b-c_d" @dtesn(description="Texts that need quotes somewhere")
	spread?: number & >=-1 & <=2 @dtesn(description="A number")
}
`

// TestExportIsTakenBack holds that each format gives back what was exported, whatever the
// values are.
func TestExportIsTakenBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "odd.cue")
	if err := os.WriteFile(path, []byte(oddTexts), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := schema.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	rules := s.For("production")
	rapid.Check(t, func(t *rapid.T) {
		spread, _ := schema.Number(rapid.SampledFrom([]string{"0.70", "-1", "1e0", "2"}).Draw(t, "spread"))
		p := rules.Defaults().With("spread", spread).With("style", schema.Text(rapid.SampledFrom(rules.Parameter("style").Values).Draw(t, "style")))
		origin := schema.Origin{Position: schema.Position{File: rapid.StringN(0, 20, 40).Draw(t, "file"), Line: 3, Column: 7}, Commit: "0123456789abcdef"}
		e := &export{Environment: "production", Snapshot: "snapshot_1_0001", Timestamp: 1, Revision: "r\nx: 1", Parameters: p, Provenance: schema.Provenance{}}
		for _, name := range p.Names() {
			e.Provenance[name] = origin
		}
		for format, write := range exportFormats {
			text, err := write(e)
			if err != nil {
				t.Fatal(err)
			}
			back, wrong, err := parseValues(rules, "f", text)
			if err != nil || len(wrong) > 0 || !back.Equal(p) {
				t.Errorf("%s: %v %v %v\n%s", format, back, wrong, err, text)
			}
		}
	})
}
