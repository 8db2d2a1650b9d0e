package dtesn

import "dtesn-agent/schema"

// The paths of the API.
const (
	PathCurrent     = "/v1/config/current"
	PathStatus      = "/v1/config/status"
	PathSchema      = "/v1/config/schema"
	PathSnapshots   = "/v1/config/snapshots"
	PathHealth      = "/v1/config/health"
	PathUpdate      = "/v1/config/update"
	PathBatchUpdate = "/v1/config/batch-update"
	PathValidate    = "/v1/config/validate"
	PathRollback    = "/v1/config/rollback"
	PathEnvironment = "/v1/config/environment"
	PathProcess     = "/v1/process"
)

// MaxBody is the most bytes that a request or an answer may hold.
const MaxBody = 1 << 20

// Update is the body of POST update and POST validate, and one entry of a
// BatchUpdate.
type Update struct {
	Parameter   string       `json:"parameter"`
	Value       schema.Value `json:"value"`
	Description string       `json:"description,omitempty"`
	// Environment is a label, as EnvironmentRequest sets it.
	Environment string `json:"environment,omitempty"`
	// ValidateOnly asks for a dry run. A batch has none: the Python server
	// ignores it there and applies the batch.
	ValidateOnly bool `json:"validate_only,omitempty"`
}

// BatchUpdate is the body of POST batch-update: all of it, or none.
type BatchUpdate struct {
	Updates     []Update `json:"updates"`
	Description string   `json:"description,omitempty"`
	// SnapshotID and Revision name the snapshot that the batch brings.
	SnapshotID   string `json:"snapshot_id,omitempty"`
	Revision     string `json:"revision,omitempty"`
	ValidateOnly bool   `json:"validate_only,omitempty"` // refused
}

// EnvironmentRequest is the body of POST environment.
type EnvironmentRequest struct {
	Environment string `json:"environment"`
}
