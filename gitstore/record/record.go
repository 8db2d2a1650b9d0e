// Package record has the types of the history: what a record, a hold and an
// outcome are. It has no code that reads or writes them; gitstore does that.
package record

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"time"

	"dtesn-agent/schema"
)

// An Outcome is the verdict on an attempt. A verdict is a value: an error is
// kept for faults.
type Outcome string

// The outcomes of an attempt.
const (
	Pending    Outcome = "pending"    // committed, not yet settled
	Applied    Outcome = "applied"    // the engine runs it, durably on record
	Unchanged  Outcome = "unchanged"  // equal to what is applied and runs
	Invalid    Outcome = "invalid"    // the document, the schema or a policy says no
	Refused    Outcome = "refused"    // signature, rewind, wrong environment
	Rejected   Outcome = "rejected"   // the engine, probation or a callback says no
	Held       Outcome = "held"       // not tried: its values are held, or paused
	Superseded Outcome = "superseded" // a newer one took its place
)

// Outcomes lists every outcome, for closed label sets.
func Outcomes() []Outcome {
	return []Outcome{Pending, Applied, Unchanged, Invalid, Refused, Rejected, Held, Superseded}
}

// A Kind says what a snapshot records.
type Kind string

// The kinds of snapshots. A change or a rollback is a candidate until it is
// settled; a revert or a note is a settlement and is never reverted.
const (
	KindChange   Kind = "change"   // the source declared new Parameters
	KindRollback Kind = "rollback" // an operator went back
	KindRevert   Kind = "revert"   // a candidate was rejected or withdrawn
	KindNote     Kind = "note"     // a hold or a pause began or ended; same Parameters
)

// Candidate reports whether a snapshot of this kind asks for new Parameters,
// so that it is open until settled.
func (k Kind) Candidate() bool { return k == KindChange || k == KindRollback }

// The format numbers. Format is in <state>/format, and in snapshot.json of a
// record with the parameters that the first release had. FormatByName is in
// snapshot.json of a record with others: agents that read format 1 alone take it
// for no record at all, and must refuse to start rather than lose its hold.
const (
	Format       = 1
	FormatByName = 2
)

// format1Names is the SHA-256 of the names of format 1, sorted, with commas.
const format1Names = "ca81ad472be021cfdcf5bfe1fafb469301cee0da5a44024b216775b628c30e30"

// FormatOf returns the format of a record with the parameters p.
func FormatOf(p schema.Parameters) int {
	sum := sha256.Sum256([]byte(strings.Join(p.Names(), ",")))
	if hex.EncodeToString(sum[:]) == format1Names {
		return Format
	}
	return FormatByName
}

// A Record is a commit in the snapshot repository: Parameters that were to
// be sent to the engine, and their story. The fields with a JSON name are the
// content of snapshot.json; the others are the commit's own.
type Record struct {
	Format int `json:"format"`
	// Index counts the records of the repository from 1 and never restarts.
	Index int `json:"index"`
	// ID is "snapshot_<unix seconds>_<index, at least 4 digits>".
	ID          string              `json:"snapshot_id"`
	Kind        Kind                `json:"kind"`
	Timestamp   float64             `json:"timestamp"` // Unix seconds
	Description string              `json:"description"`
	Environment schema.Environment  `json:"environment"`
	Instance    string              `json:"instance"`
	Config      schema.Parameters   `json:"config_data"`
	Source      Source              `json:"source"`
	Provenance  schema.Provenance   `json:"provenance"`
	Changes     []schema.Change     `json:"changes"`
	Before      *schema.Parameters  `json:"before"` // what the engine ran; nil if not known
	Experiments []schema.Membership `json:"experiments"`
	Held        *Hold               `json:"held"`
	// Errors are the engine's words, on the revert of a rejected candidate.
	Errors        []string `json:"errors,omitempty"`
	AgentVersion  string   `json:"agent_version"`
	SchemaDigest  string   `json:"schema_digest"`
	RollbackPoint bool     `json:"rollback_point"` // false only on the revert of a first Document

	// Commit is the snapshot's commit, 40 hex digits; Parent the one before,
	// empty for the first.
	Commit string `json:"-"`
	Parent string `json:"-"`
	// OutcomeOf settles the parent, when it is a candidate that was not
	// applied: trailer "Outcome-Of: <id> rejected|superseded".
	OutcomeOf *Settlement `json:"-"`
	// RequestedBy is the uid that asked for a rollback; nil otherwise.
	RequestedBy *int `json:"-"`
}

// ErrInUse says of a state directory that another agent has it, and with it the
// engine.
var ErrInUse = errors.New("is in use by another agent")

// A Source says where the parameters of a record came from.
type Source struct {
	// Kind is "file" or "git"; "operator" for a rollback or a note.
	Kind string `json:"kind"`
	// Location is the directory or the repository's address, without secrets.
	Location string `json:"location,omitempty"`
	// Revision names the document: a commit, or a hash of its files.
	Revision string `json:"revision,omitempty"`
	// Author ("Name <mail>") and Subject of the source commit, where known.
	Author  string `json:"author,omitempty"`
	Subject string `json:"subject,omitempty"`
	// Signer and Key ("SHA256:…") are who signed the commit or tag, where
	// signatures are asked for.
	Signer string `json:"signer,omitempty"`
	Key    string `json:"key,omitempty"`
}

// A Settlement is the verdict on a candidate that was not applied.
type Settlement struct {
	ID      string
	Outcome Outcome // Rejected or Superseded
}

// Hold returns the hold in force when s is the head; nil for none. A nil Record,
// the head of an empty repository, has none.
func (s *Record) Hold() *Hold {
	if s == nil {
		return nil
	}
	return s.Held
}

// Digest returns the digest of the parameters.
func (s *Record) Digest() schema.Digest { return s.Config.Digest() }

// Time returns when the record was made.
func (s *Record) Time() time.Time { return FromUnix(s.Timestamp) }

// Unix turns a time into the seconds that snapshots and the API carry, with
// milliseconds.
func Unix(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// FromUnix is the inverse of Unix.
func FromUnix(s float64) time.Time { return time.UnixMilli(int64(s * 1000)) }

// A Row is a record as listings show it: with its outcome, which is not
// in the commit but follows from its child and the applied ref.
type Row struct {
	Record
	Outcome Outcome
	// ValidationErrors are the engine's errors of a rejected record.
	ValidationErrors []string
	// IsActive: it is the applied snapshot, whose Parameters are to run.
	IsActive bool
}
