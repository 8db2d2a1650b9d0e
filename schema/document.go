package schema

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strings"
)

// An Environment is one of the four a DTESN fleet knows; dtesn.cue lists them.
type Environment string

// A File is one file of a Document.
type File struct {
	// Path is relative to the configuration root, with slashes:
	// "templates/high-throughput.yaml".
	Path  string
	Bytes []byte
	// Refused says why the bytes were not taken, as a Violation would ("is a
	// link that leaves the configuration directory"); Bytes is nil then. What
	// stands behind a "; " is the way out, where that is none of replacing it by a
	// regular file.
	Refused string
}

// MaxFileBytes is the most a configuration file may hold. A source reads one
// byte more at most, so that the loader can tell.
const MaxFileBytes = 1 << 20

// A Source says where a Document came from. It is stored in snapshots.
type Source struct {
	// Kind is "file" or "git"; "operator" for a rollback or a note.
	Kind string `json:"kind"`
	// Location is the directory or the repository's address, without secrets.
	Location string `json:"location,omitempty"`
	// Revision names the Document: a commit, or FilesRevision.
	Revision string `json:"revision,omitempty"`
	// Author ("Name <mail>") and Subject of the source commit, where known.
	Author  string `json:"author,omitempty"`
	Subject string `json:"subject,omitempty"`
	// Signer and Key ("SHA256:…") are who signed the commit or tag, where
	// signatures are asked for.
	Signer string `json:"signer,omitempty"`
	Key    string `json:"key,omitempty"`
}

// A Document is the bytes a source holds now for one environment: base.yaml,
// the environment's file and every template it extends. A file that does not
// exist is not in Files: its absence is a Violation, not an error.
// A Document is immutable once built.
type Document struct {
	Environment Environment
	Source      Source
	// Refused says why the source cannot be trusted with this revision, with
	// the way out; Files is empty then.
	Refused *Refusal
	// Follows is the commit that ran when a git source judged this revision, ""
	// for none: it must still run when the Document is taken up.
	Follows string
	// Files are sorted by Path.
	Files []File
}

// A Refusal is why a source cannot be trusted: an unsigned commit, or a ref
// that went back.
type Refusal struct{ Reason, Hint string }

// Revision is what names the Document.
func (d *Document) Revision() string { return d.Source.Revision }

// File returns the bytes of the file at path, and whether the Document has it.
func (d *Document) File(path string) ([]byte, bool) {
	i, ok := slices.BinarySearchFunc(d.Files, path, func(f File, p string) int { return strings.Compare(f.Path, p) })
	if !ok {
		return nil, false
	}
	return d.Files[i].Bytes, true
}

// FilesRevision is the revision of a Document that no commit names: SHA-256
// over (relative path, length, bytes) of its files, sorted by path; path and
// bytes are each preceded by their length as 8 bytes, big-endian; a refused file
// has the length of all ones and its refusal for bytes. Lower-case hex.
func FilesRevision(files []File) string {
	sorted := slices.SortedFunc(slices.Values(files), func(a, b File) int { return strings.Compare(a.Path, b.Path) })
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

// A Position is a place in a source file. Line and Column count from 1; 0
// means the file as a whole.
type Position struct {
	File   string `json:"file"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
}

// String is the position as compilers write it: "file:line:column", or the
// file alone.
func (p Position) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
}

// An Origin is the Provenance of one parameter: the place that set it.
type Origin struct {
	Position
	// Layer is "base", "template:NAME", "environment", "experiment:NAME", or
	// "schema" for the default sent while caching is off.
	Layer string `json:"layer"`
	// Commit is the source commit, for a git source.
	Commit string `json:"commit,omitempty"`
}

// Provenance says for each parameter what set it.
type Provenance map[string]Origin

// A Membership says whether this instance is in an experiment's cohort.
type Membership struct {
	Name    string `json:"name"`
	Percent int    `json:"percent"`
	Member  bool   `json:"member"`
}

// A Configuration is a Document that was loaded and found valid for one
// instance.
type Configuration struct {
	Parameters  Parameters
	Provenance  Provenance
	Description string
	Experiments []Membership
}
