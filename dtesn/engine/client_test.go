package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"dtesn-agent/dtesn"
	"dtesn-agent/dtesn/api"
	"dtesn-agent/schema"
)

// The client meets an engine of another schema: it has a parameter less, and
// does not know the environment but by its label.
func TestAClientOfAnotherSchema(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "more.cue")
	text := `package dtesn
#extends: "dtesn"
#environments: {canary: {label: "production"}, moon: {}}
#Parameters: temperature?: number & >=0 & <=2 @dtesn(description="Sampling temperature")
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	more, err := schema.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, Options{})
	c := dtesn.New(dtesn.Options{Socket: s.socket, Rules: more.For("canary")})
	reading, err := c.Read(t.Context())
	if err != nil || reading.Environment != "production" || reading.Relabelled != startLabel || !reading.Parameters.Equal(rules().Defaults()) {
		t.Fatalf("read %+v, %v", reading, err)
	}
	bounds, err := c.Bounds(t.Context())
	lines := api.Compare(more.For("canary").Parameters(), bounds, reading)
	if want := []string{"the engine does not know temperature"}; err != nil || !slices.Equal(lines, want) {
		t.Errorf("%q, %v; want %q", lines, err, want)
	}

	wish := reading.Parameters.With("cache_ttl_seconds", schema.Int(7))
	if a := c.Send(t.Context(), api.Batch{Parameters: wish.With("temperature", schema.Int(1))}); a.Verdict != api.VerdictRejected || fmt.Sprint(a.Errors) != "[no parameter is named temperature]" {
		t.Errorf("a parameter that it does not have: %+v", a)
	}
	if a := c.Send(t.Context(), api.Batch{Parameters: wish}); a.Verdict != api.VerdictAccepted {
		t.Errorf("what it has: %+v", a)
	}
	if reading, err = c.Read(t.Context()); err != nil || !reading.Parameters.Equal(wish) || reading.Relabelled != "" {
		t.Errorf("read %+v, %v; want %v", reading, err, wish)
	}

	moon := dtesn.New(dtesn.Options{Socket: s.socket, Rules: more.For("moon")})
	if _, err := moon.Read(t.Context()); err == nil || !strings.Contains(err.Error(), "400 Bad Request when told that this is moon: no environment is named moon: it is one of development, ") {
		t.Errorf("a label that it does not know: %v", err)
	}
}
