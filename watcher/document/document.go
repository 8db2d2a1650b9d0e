// Package document has the types of what a source delivers: a Document, where it
// came from, and why a source may refuse a revision.
package document

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math"
	"slices"
	"strings"

	"dtesn-agent/schema"
)

// A Source is where a Document came from. Records store it.
type Source struct {
	// Kind is "file" or "git"; "operator" for a rollback or a note.
	Kind string `json:"kind"`
	// Location is the directory or the repository's address, without secrets.
	Location string `json:"location,omitempty"`
	// Revision names the Document: a commit, or FilesRevision.
	Revision string `json:"revision,omitempty"`
	// Author ("Name <mail>") and Subject are those of the source commit.
	Author  string `json:"author,omitempty"`
	Subject string `json:"subject,omitempty"`
	// Signer is who signed the commit or tag, and Key the fingerprint of the
	// key ("SHA256:…"). Both are empty unless the source verifies signatures.
	Signer string `json:"signer,omitempty"`
	Key    string `json:"key,omitempty"`
}

// A Document is what a source holds now for one environment: base.yaml, the
// environment's file and the templates that it extends. It is immutable.
type Document struct {
	Environment schema.Environment
	Source      Source
	// Refused is why the source does not trust this revision, nil if it does.
	// A refused Document has no Files.
	Refused *Refusal
	// Follows is the source commit of the applied record when a git source
	// checked this revision, "" for none. The check holds while that record is
	// applied.
	Follows string
	// Parents are those of the source commit; nil for files.
	Parents []string
	// Files are sorted by Path. A missing file is not among them: Load reports
	// it as a violation. If the files exceed the limits of a document, some are
	// left out, and Load reports that the document is too large.
	Files []schema.File
}

// A Refusal is why a source does not trust a revision: an unsigned commit, or a
// ref that was moved to a commit that does not descend from the applied one.
type Refusal struct{ Reason, Hint string }

// Revision returns the name of the Document: a commit, or FilesRevision.
func (d *Document) Revision() string { return d.Source.Revision }

// Input returns what the schema loads for an instance.
func (d *Document) Input(instance string) schema.Input {
	in := schema.Input{Files: d.Files, Instance: instance}
	if d.Source.Kind == "git" {
		in.Commit = d.Source.Revision
	}
	return in
}

// File returns the bytes of the file at path, and whether the Document has it.
func (d *Document) File(path string) ([]byte, bool) {
	i, ok := slices.BinarySearchFunc(d.Files, path, func(f schema.File, p string) int { return strings.Compare(f.Path, p) })
	if !ok {
		return nil, false
	}
	return d.Files[i].Bytes, true
}

// FilesRevision returns the revision of files that no commit names, in
// lower-case hex. It is the SHA-256 over path and bytes of each file, sorted by
// path. Each path and each content is preceded by its length as 8 bytes,
// big-endian. A refused file has a length of all ones and its refusal as content.
func FilesRevision(files []schema.File) string {
	sorted := slices.SortedFunc(slices.Values(files), func(a, b schema.File) int { return strings.Compare(a.Path, b.Path) })
	h := sha256.New()
	var n [8]byte
	for _, f := range sorted {
		binary.BigEndian.PutUint64(n[:], uint64(len(f.Path)))
		h.Write(n[:])
		h.Write([]byte(f.Path))
		length, content := uint64(len(f.Bytes)), f.Bytes
		if f.Refused != "" {
			length, content = math.MaxUint64, []byte(f.Refused)
		}
		binary.BigEndian.PutUint64(n[:], length)
		h.Write(n[:])
		h.Write(content)
	}
	return hex.EncodeToString(h.Sum(nil))
}
