package engine

import "dtesn-agent/schema"

// RollbackRequest is the body of POST rollback.
type RollbackRequest struct {
	// SnapshotID is the state to go back to; empty for the one before.
	SnapshotID string `json:"snapshot_id"`
}

// Response is what every POST of /v1/config and every failure answers.
type Response struct {
	Success bool     `json:"success"`
	Message string   `json:"message"`
	Data    any      `json:"data,omitempty"`
	Errors  []string `json:"errors,omitempty"`
}

// Updated is one parameter that a request changed.
type Updated struct {
	Parameter string       `json:"parameter"`
	OldValue  schema.Value `json:"old_value"`
	NewValue  schema.Value `json:"new_value"`
}

// UpdateData is the data of an accepted POST update.
type UpdateData struct {
	Updated
	SnapshotID       string `json:"snapshot_id"`
	RollbackSnapshot string `json:"rollback_snapshot"`
}

// BatchData is the data of an accepted POST batch-update.
type BatchData struct {
	UpdatedParameters []Updated `json:"updated_parameters"`
	SnapshotID        string    `json:"snapshot_id"`
	RollbackSnapshot  string    `json:"rollback_snapshot"`
	// Reinitialized are the critical parameters that changed: the engine built
	// components anew for them.
	Reinitialized []string `json:"reinitialized"`
}

// RollbackData is the data of an accepted POST rollback.
type RollbackData struct {
	// SnapshotID is the record of the rollback, RestoredSnapshot the one it
	// went back to, RollbackSnapshot the one that was active before.
	SnapshotID       string            `json:"snapshot_id"`
	RestoredSnapshot string            `json:"restored_snapshot"`
	RollbackSnapshot string            `json:"rollback_snapshot"`
	Configuration    schema.Parameters `json:"configuration"`
}

// EnvironmentData is the data of an accepted POST environment.
type EnvironmentData struct {
	Environment         string `json:"environment"`
	PreviousEnvironment string `json:"previous_environment"`
}

// Current is the answer to GET current.
type Current struct {
	Success       bool              `json:"success"`
	Configuration schema.Parameters `json:"configuration"`
	Environment   string            `json:"environment"`
	Timestamp     float64           `json:"timestamp"` // Unix seconds
	SnapshotID    string            `json:"snapshot_id"`
	Building      *Building         `json:"building,omitempty"`
}

// Building is the change that an engine builds beside what it runs.
type Building struct {
	Revision string  `json:"revision"`
	Since    float64 `json:"since"` // Unix seconds
}

// Snapshot is one state that an engine ran, as GET snapshots lists it.
type Snapshot struct {
	SnapshotID       string            `json:"snapshot_id"`
	Timestamp        float64           `json:"timestamp"` // Unix seconds
	Description      string            `json:"description"`
	Environment      string            `json:"environment"`
	IsActive         bool              `json:"is_active"`
	ValidationErrors []string          `json:"validation_errors"` // always null
	ConfigData       schema.Parameters `json:"config_data"`
	// Revision is the agent's snapshot commit, where one was named.
	Revision string `json:"revision,omitempty"`
}

// Snapshots is the answer to GET snapshots, newest first.
type Snapshots struct {
	Success    bool       `json:"success"`
	Snapshots  []Snapshot `json:"snapshots"`
	TotalCount int        `json:"total_count"`
}

// Status is what GET status says, and GET health in part.
type Status struct {
	CurrentConfig       schema.Parameters `json:"current_config"`
	Environment         string            `json:"environment"`
	TotalSnapshots      int               `json:"total_snapshots"`
	MaxSnapshots        int               `json:"max_snapshots"`
	BackupDirectory     string            `json:"backup_directory"`
	AutoBackupEnabled   bool              `json:"auto_backup_enabled"`
	RegisteredCallbacks int               `json:"registered_callbacks"`
	// MemoryBytes is what is built now and what it will take to run it;
	// MemoryLimitBytes what may be held, while rebuilding too.
	MemoryBytes      int64 `json:"memory_bytes"`
	MemoryLimitBytes int64 `json:"memory_limit_bytes"`
	// Generation counts rebuilds, from 1.
	Generation uint64 `json:"generation"`
	// Performance is nil while enable_performance_monitoring is off.
	Performance *Performance `json:"performance"`
}

// Performance are the figures of POST process since monitoring was switched
// on.
type Performance struct {
	Requests uint64 `json:"requests"`
	Cached   uint64 `json:"cached"` // of Requests, those answered from the cache
	// Quantiles of the last 1024 requests, in seconds.
	LatencyP50 float64 `json:"latency_p50_seconds"`
	LatencyP99 float64 `json:"latency_p99_seconds"`
	LatencyMax float64 `json:"latency_max_seconds"`
}

// StatusResponse is the answer to GET status.
type StatusResponse struct {
	Success bool   `json:"success"`
	Status  Status `json:"status"`
}

// Health is whether a server is well, and what was looked at.
type Health struct {
	Healthy bool            `json:"healthy"`
	Checks  map[string]bool `json:"checks"`
}

// HealthResponse is the answer to GET health.
type HealthResponse struct {
	Success bool   `json:"success"`
	Health  Health `json:"health"`
	Status  Status `json:"status"`
}

// ProcessRequest is the body of POST process: the series so far, oldest first,
// and how many values to predict.
type ProcessRequest struct {
	Series  []float64 `json:"series"`
	Horizon int       `json:"horizon"`
}

// ProcessData is the data of an answered POST process.
type ProcessData struct {
	Predictions    []float64 `json:"predictions"`
	Generation     uint64    `json:"generation"`
	ReservoirSize  int       `json:"reservoir_size"`
	Cached         bool      `json:"cached"`
	LatencySeconds float64   `json:"latency_seconds"`
}
