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

// An Outcome is the verdict on an attempt. It is a value, errors are for faults.
type Outcome string

// The outcomes of an attempt.
const (
	Pending    Outcome = "pending"    // committed, not yet settled
	Applied    Outcome = "applied"    // the engine runs it, durably on record
	Unchanged  Outcome = "unchanged"  // equal to what is applied and runs
	Invalid    Outcome = "invalid"    // the document, the schema or a policy says no
	Refused    Outcome = "refused"    // signature, rewind, wrong environment
	Rejected   Outcome = "rejected"   // the engine, a probation or a required hook says no
	Held       Outcome = "held"       // not tried: its values are held, or paused
	Superseded Outcome = "superseded" // a newer one took its place
)

// Outcomes lists every outcome, for closed label sets.
func Outcomes() []Outcome {
	return []Outcome{Pending, Applied, Unchanged, Invalid, Refused, Rejected, Held, Superseded}
}

// A Kind says what a snapshot records.
type Kind string

// The kinds of snapshots. A revert or a note is a settlement and is never reverted.
const (
	KindChange   Kind = "change"   // the source declared new Parameters
	KindRollback Kind = "rollback" // an operator went back
	KindRevert   Kind = "revert"   // a candidate was rejected or withdrawn
	KindNote     Kind = "note"     // a hold or a pause began or ended; same Parameters
)

// Candidate reports whether a snapshot of this kind is open until it is settled.
func (k Kind) Candidate() bool { return k == KindChange || k == KindRollback }

// The formats of snapshot.json: Format with the parameters that the first release had,
// FormatByName with others. Agents that read Format alone must refuse the latter rather
// than lose its hold.
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

// A Record is a commit in the snapshot repository: Parameters that were to be sent to
// the engine, and their story. The fields with a JSON name are the content of
// snapshot.json; the others are the commit's own.
type Record struct {
	Format      int                 `json:"format"`
	Index       int                 `json:"index"`       // from 1, never restarts
	ID          string              `json:"snapshot_id"` // snapshot_<unix seconds>_<index, at least 4 digits>
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
	Errors      []string            `json:"errors,omitempty"` // the engine's, on the revert of a rejected candidate

	Requester *Requester `json:"requester,omitempty"` // who ordered it; nil if nobody did

	AgentVersion  string `json:"agent_version"`
	SchemaDigest  string `json:"schema_digest"`
	RollbackPoint bool   `json:"rollback_point"` // false only on the revert of a first Document

	Commit      string      `json:"-"` // 40 hex digits
	Parent      string      `json:"-"` // the commit before, empty for the first
	Subject     string      `json:"-"` // what changed and why, on one line
	OutcomeOf   *Settlement `json:"-"` // of the parent, when it is a candidate that was not applied
	RequestedBy *int        `json:"-"` // the uid that asked for a rollback
}

// ErrInUse says that another agent has the state directory, and with it the engine.
var ErrInUse = errors.New("is in use by another agent")

// A Source says where the parameters of a record came from.
type Source struct {
	Kind     string `json:"kind"`               // "file" or "git"; "operator" for a rollback or a note
	Location string `json:"location,omitempty"` // directory or address, without secrets
	Revision string `json:"revision,omitempty"` // a commit, or a hash of the files
	// Author ("Name <mail>") and Subject are the source commit's, where known.
	Author  string `json:"author,omitempty"`
	Subject string `json:"subject,omitempty"`
	// Signer and Key ("SHA256:…") are who signed it, where signatures are asked for.
	Signer string `json:"signer,omitempty"`
	Key    string `json:"key,omitempty"`
}

// A Repair is one thing that was found amiss in the history and put right.
type Repair struct {
	At    float64 `json:"at"`    // Unix seconds
	Found string  `json:"found"` // what was found, one line
	Did   string  `json:"did"`   // what was done about it, one line
	Kept  string  `json:"kept"`  // the path or the ref under which it was set aside, or ""
}

// String returns the repair on one line, for the log.
func (r Repair) String() string {
	text := r.Found + ": " + r.Did
	if r.Kept != "" {
		text += "; kept as " + r.Kept
	}
	return text
}

// A Settlement is the verdict on a candidate that was not applied.
type Settlement struct {
	ID      string
	Outcome Outcome // Rejected or Superseded
}

// Unix returns the seconds, with milliseconds, that snapshots and the API carry.
func Unix(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// FromUnix is the inverse of Unix.
func FromUnix(s float64) time.Time { return time.UnixMilli(int64(s * 1000)) }

// A Row is a record with its outcome, which follows from its child and what is applied.
type Row struct {
	Record
	Outcome          Outcome
	ValidationErrors []string // the engine's, of a rejected record
	RejectedBy       string   // of a rejected record: "engine", or who holds what it changed
	IsActive         bool     // it is the applied snapshot, whose Parameters are to run
}

// RejectedBy returns who rejected a candidate, as the revert of it says: "engine", or who
// holds what it changed.
func RejectedBy(candidate, revert *Record) string {
	if candidate.Kind == KindChange && revert.Held != nil { // a rollback leaves a hold as it was
		return revert.Held.By
	}
	return "engine"
}

// IsDamaged reports whether the content of the record cannot be read. Then it has what
// its commit says, and Errors why.
func (r *Row) IsDamaged() bool { return r.Config.Len() == 0 }
