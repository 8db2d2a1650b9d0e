package document

import (
	"testing"

	"dtesn-agent/schema"
)

// TestFilesRevision keeps the revision of files as records have it.
func TestFilesRevision(t *testing.T) {
	files := []schema.File{
		{Path: "templates/a.yaml"},
		{Path: "base.yaml", Bytes: []byte("parameters: {}\n")},
		{Path: "production.yaml", Refused: "is a directory"},
	}
	const want = "377df1e3db9736f1e87d06262ed0e0e417e643edbc0b9ea19bf1f47cd446784c"
	if got := FilesRevision(files); got != want {
		t.Errorf("FilesRevision = %s, want %s", got, want)
	}
}

func TestInput(t *testing.T) {
	files := []schema.File{{Path: "base.yaml"}}
	for kind, commit := range map[string]string{"git": "abc", "file": ""} {
		d := &Document{Source: Source{Kind: kind, Revision: "abc"}, Files: files}
		in := d.Input("node-1")
		if in.Commit != commit || in.Instance != "node-1" || len(in.Files) != 1 {
			t.Errorf("the input of a %s source is %+v", kind, in)
		}
	}
}
