package schema

import (
	"errors"
	"time"
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
	Held       Outcome = "held"       // not tried: its digest is held, or paused
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

// A Hold is what must not be tried. The record at the head says the hold in
// force.
type Hold struct {
	// Digests are the Parameters that must not be tried, sorted.
	Digests []Digest `json:"digests"`
	// Paused: nothing may be tried until `agent resume`.
	Paused bool   `json:"paused"`
	Reason string `json:"reason"`
	// Since is in Unix seconds.
	Since float64 `json:"since"`
	// By is "engine", "operator", "probation" or "hook".
	By string `json:"by"`
}

// Holds reports whether digest must not be tried. A nil Hold holds nothing.
func (h *Hold) Holds(digest Digest) bool {
	if h == nil {
		return false
	}
	if h.Paused {
		return true
	}
	for _, d := range h.Digests {
		if d == digest {
			return true
		}
	}
	return false
}

// SnapshotFormat is the format number in snapshot.json and in <state>/format.
const SnapshotFormat = 1

// A Snapshot is a commit in the snapshot repository: Parameters that were to
// be sent to the engine, and their story. The fields with a JSON name are the
// content of snapshot.json; the others are the commit's own.
type Snapshot struct {
	Format int `json:"format"`
	// Index counts the records of the repository from 1 and never restarts.
	Index int `json:"index"`
	// ID is "snapshot_<unix seconds>_<index, at least 4 digits>".
	ID          string       `json:"snapshot_id"`
	Kind        Kind         `json:"kind"`
	Timestamp   float64      `json:"timestamp"` // Unix seconds
	Description string       `json:"description"`
	Environment Environment  `json:"environment"`
	Instance    string       `json:"instance"`
	Config      Parameters   `json:"config_data"`
	Source      Source       `json:"source"`
	Provenance  Provenance   `json:"provenance"`
	Changes     []Change     `json:"changes"`
	Before      *Parameters  `json:"before"` // what the engine ran; nil if not known
	Experiments []Membership `json:"experiments"`
	Held        *Hold        `json:"held"`
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

// A Settlement is the verdict on a candidate that was not applied.
type Settlement struct {
	ID      string
	Outcome Outcome // Rejected or Superseded
}

// Hold is the hold in force when s is the head; nil for none. A nil Snapshot,
// the head of an empty repository, has none.
func (s *Snapshot) Hold() *Hold {
	if s == nil {
		return nil
	}
	return s.Held
}

// Digest is the digest of the snapshot's Parameters.
func (s *Snapshot) Digest() Digest { return s.Config.Digest() }

// Time is when the snapshot was made.
func (s *Snapshot) Time() time.Time { return FromUnix(s.Timestamp) }

// Unix turns a time into the seconds that snapshots and the API carry, with
// milliseconds.
func Unix(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// FromUnix is the inverse of Unix.
func FromUnix(s float64) time.Time { return time.UnixMilli(int64(s * 1000)) }

// A Record is a snapshot as listings show it: with its outcome, which is not
// in the commit but follows from its child and the applied ref.
type Record struct {
	Snapshot
	Outcome Outcome
	// ValidationErrors are the engine's errors of a rejected record.
	ValidationErrors []string
	// IsActive: it is the applied snapshot, whose Parameters are to run.
	IsActive bool
}
