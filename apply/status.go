package apply

import (
	"time"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/watcher/document"
)

// A Condition is the one word for how things stand.
type Condition string

// The conditions, as status, log and CLI have them.
const (
	StateStarting   Condition = "starting"
	StateInSync     Condition = "in_sync"
	StateApplying   Condition = "applying"
	StateProbation  Condition = "probation"
	StateWaiting    Condition = "waiting_for_engine"
	StateHeld       Condition = "held"
	StateInvalid    Condition = "invalid"
	StateRefused    Condition = "refused"
	StateDrifted    Condition = "drifted"
	StateDegraded   Condition = "degraded"
	StateObserving  Condition = "observing"
	defaultAttempts           = 50 // attempts kept in Status.Attempts
)

// A Status is everything the agent knows about how things stand: one
// immutable value, swapped whole, read without a lock. Times are Unix
// seconds; 0 means never. The JSON is DESIGN §8's.
type Status struct {
	State  Condition `json:"state"`
	Reason string    `json:"reason"`
	Hint   string    `json:"hint"`
	Since  float64   `json:"since"` // when State became what it is, at the start of the agent at the earliest

	// Current is what the engine was last read to run; nil before the first
	// reading.
	Current           *schema.Parameters `json:"current_config"`
	Environment       schema.Environment `json:"environment"`
	Instance          string             `json:"instance"`
	Schema            SchemaStatus       `json:"schema"`
	TotalSnapshots    int                `json:"total_snapshots"`
	MaxSnapshots      int                `json:"max_snapshots"`
	ActiveSnapshots   int                `json:"active_snapshots"`
	BackupDirectory   string             `json:"backup_directory"`
	AutoBackupEnabled bool               `json:"auto_backup_enabled"`
	// StateVolatile is why the state directory does not outlive the pod, or the machine;
	// "" if it does, as far as is known.
	StateVolatile       string `json:"state_volatile"`
	RegisteredCallbacks int    `json:"registered_callbacks"`

	Seen        Seen                `json:"seen"`
	Attempted   *Attempt            `json:"attempted"`
	Attempts    []Attempt           `json:"attempts"` // newest first, at most 50
	Running     Running             `json:"running"`
	InSync      bool                `json:"in_sync"`
	Held        *record.Hold        `json:"held"`
	Drift       *Drift              `json:"drift"`
	LastDrift   *LastDrift          `json:"last_drift"`
	Source      SourceStatus        `json:"source"`
	Engine      EngineStatus        `json:"engine"`
	Policy      *PolicyStatus       `json:"policy"` // nil without one
	Experiments []schema.Membership `json:"experiments"`
	Repairs     []record.Repair     `json:"repairs"` // since the agent started, oldest first

	// Ready answers /readyz: the engine answers and runs the applied, valid set
	// (or drift is being reported). Unready says why not, one line.
	Ready   bool   `json:"-"`
	Unready string `json:"-"`
	// Applied is the record of what is applied, nil if nothing is. It is on
	// disk, so it is known before the engine is; it must not be changed.
	Applied *record.Record `json:"-"`

	// Unrecorded: a change, a pause or the end of one could not be recorded, and waits.
	Unrecorded bool `json:"-"`

	// openRollback is the id of the rollback that is on record and not settled, or "".
	openRollback string
	// checks hold but for SourceFresh, which the clock decides.
	checks        Checks
	sourceStaleAt time.Time
}

// Checks are the health checks as they are at now: what was found when the
// status was made, and the age of the last good read of the source.
func (s *Status) Checks(now time.Time) Checks {
	c := s.checks
	c.SourceFresh = now.Before(s.sourceStaleAt)
	return c
}

// SchemaStatus names the schema of the agent.
type SchemaStatus struct {
	File   string `json:"file"` // "embedded" for the one that the program ships
	Digest string `json:"digest"`
}

// Seen is the newest revision the source showed.
type Seen struct {
	Revision string  `json:"revision"`
	At       float64 `json:"at"`
}

// An Attempt is one try to bring a Document to the engine, and its outcome.
type Attempt struct {
	Revision        string             `json:"revision"`
	Outcome         record.Outcome     `json:"outcome"`
	Reason          string             `json:"reason"`
	SnapshotID      string             `json:"snapshot_id,omitempty"`
	Changes         []schema.Change    `json:"changes,omitempty"`
	Cause           string             `json:"cause,omitempty"`   // "policy" of what that refused
	Policy          []schema.Denial    `json:"policy,omitempty"`  // the rules that deny it
	HeldBy          string             `json:"held_by,omitempty"` // who holds it, of outcome held: a Hold's By
	Violations      []schema.Violation `json:"violations"`
	ViolationsTotal int                `json:"violations_total"`
	At              float64            `json:"at"`

	rejected string // see Rejecting
}

// Rejecting says why it was rejected, if that is on record and the engine is not
// yet back on the last good state, for Outcome says pending until then; else "".
func (a *Attempt) Rejecting() string {
	if a.Outcome != record.Pending {
		return ""
	}
	return a.rejected
}

// Running is what the engine was last read to run, by its record.
type Running struct {
	// SnapshotID, Revision (the snapshot's commit) and SourceRevision are empty
	// when the engine runs what no applied record says.
	SnapshotID string `json:"snapshot_id"`
	// RollbackSnapshot is where `agent rollback` without an id goes.
	RollbackSnapshot string `json:"rollback_snapshot"`
	Revision         string `json:"revision"`
	SourceRevision   string `json:"source_revision"`
	Origin
	Since float64 `json:"since"`
	// Confirmed: it is durably on record as applied.
	Confirmed bool `json:"confirmed"`
	// Violations are the rules of today's schema that the applied parameters break;
	// they were valid when they were applied.
	Violations []schema.Violation `json:"violations,omitempty"`
}

// An Origin is who stands behind a source commit: its author and subject,
// and, where signatures are asked for, who signed it with which key. All are
// empty for files.
type Origin struct {
	Author  string `json:"author,omitempty"`
	Subject string `json:"subject,omitempty"`
	Signer  string `json:"signer,omitempty"`
	Key     string `json:"key,omitempty"`
}

func originOf(s document.Source) Origin {
	return Origin{Author: s.Author, Subject: s.Subject, Signer: s.Signer, Key: s.Key}
}

// Drift says that the engine runs something else than the applied snapshot.
type Drift struct {
	Since       float64         `json:"since"`
	Corrected   bool            `json:"corrected"`
	Differences []schema.Change `json:"differences"`
}

// LastDrift is the last drift that was seen, also by an earlier process of the agent.
type LastDrift struct {
	At          float64         `json:"at"`
	Until       float64         `json:"until"`       // when the engine ran the applied record again; 0 while it does not
	Differences []schema.Change `json:"differences"` // at most 16
}

// SourceStatus is how the source of Documents is.
type SourceStatus struct {
	Kind     string `json:"kind"`
	Location string `json:"location"`
	Revision string `json:"revision"`
	Origin
	Mode      string  `json:"mode"` // "inotify" or "poll"
	LastRead  float64 `json:"last_read"`
	LastError string  `json:"last_error"`
	Hint      string  `json:"hint"` // what to do about LastError
	// FailingSince is when the first of the tries was that have failed since
	// LastRead; 0 while the last went well.
	FailingSince float64 `json:"failing_since"`
}

// EngineStatus is how the engine is.
type EngineStatus struct {
	Socket      string  `json:"socket"`
	Reachable   bool    `json:"reachable"`
	Environment string  `json:"environment"`
	LastRead    float64 `json:"last_read"`
	LastError   string  `json:"last_error"`
	Hint        string  `json:"hint"` // what to do about LastError
	// FailingSince is when this agent first met the engine so that it could not
	// be asked, and has not been able to since; 0 while it can.
	FailingSince float64 `json:"failing_since"`
	// Differences lists how the engine's own schema differs from the agent's:
	// tighter bounds, parameters it does not know.
	Differences []string `json:"differences"`
	// Word says how it fails, to follow "the engine"; "" while it does not.
	Word string `json:"-"`
}

// Checks are the health checks by name; healthy means that all are true.
type Checks struct {
	ConfigManagerInitialized bool `json:"config_manager_initialized"`
	ConfigLoaded             bool `json:"config_loaded"`
	SnapshotsAvailable       bool `json:"snapshots_available"`
	BackupDirectoryWritable  bool `json:"backup_directory_writable"`
	EngineReachable          bool `json:"engine_reachable"`
	EngineEnvironment        bool `json:"engine_environment"`
	SourceFresh              bool `json:"source_fresh"`
}

// Healthy reports whether every check holds.
func (c Checks) Healthy() bool {
	return c == Checks{true, true, true, true, true, true, true}
}
