package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"time"

	"dtesn-agent/dtesn"
	"dtesn-agent/schema"
)

// transferTime is how long the body of a request may take to come, and an
// answer to go.
const transferTime = 10 * time.Second

// Handler serves the API. A wish that is understood and refused answers 200
// with success false, as the servers of this family do; one that is not
// understood 400.
func (e *Engine) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+dtesn.PathCurrent, e.getCurrent)
	mux.HandleFunc("GET "+dtesn.PathStatus, e.getStatus)
	mux.HandleFunc("GET "+dtesn.PathSchema, e.getSchema)
	mux.HandleFunc("GET "+dtesn.PathSnapshots, e.getSnapshots)
	mux.HandleFunc("GET "+dtesn.PathHealth, e.getHealth)
	mux.HandleFunc("POST "+dtesn.PathUpdate, e.postUpdate)
	mux.HandleFunc("POST "+dtesn.PathBatchUpdate, e.postBatch)
	mux.HandleFunc("POST "+dtesn.PathValidate, e.postValidate)
	mux.HandleFunc("POST "+dtesn.PathRollback, e.postRollback)
	mux.HandleFunc("POST "+dtesn.PathEnvironment, e.postEnvironment)
	mux.HandleFunc("POST "+dtesn.PathProcess, e.postProcess)
	return explained(mux)
}

// explained answers as JSON, like all else, for paths and methods that mux does
// not know.
func explained(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler, pattern := mux.Handler(r)
		if pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		plain := &statusOnly{header: w.Header()}
		handler.ServeHTTP(plain, r)
		if plain.status == http.StatusMethodNotAllowed {
			fail(w, plain.status, "Method not allowed", fmt.Sprintf("%s takes %s", r.URL.Path, w.Header().Get("Allow")))
			return
		}
		fail(w, http.StatusNotFound, "Not found", fmt.Sprintf("there is no %s; GET %s shows what can be set", r.URL.Path, dtesn.PathSchema))
	})
}

// unixSeconds returns t as the API has times, with milliseconds.
func unixSeconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// statusOnly keeps the status and the headers of an answer, and drops its text.
type statusOnly struct {
	header http.Header
	status int
}

func (s *statusOnly) Header() http.Header            { return s.header }
func (s *statusOnly) WriteHeader(status int)         { s.status = status }
func (s *statusOnly) Write(text []byte) (int, error) { return len(text), nil }

func (e *Engine) getCurrent(w http.ResponseWriter, _ *http.Request) {
	now := e.current.Load()
	answer(w, http.StatusOK, Current{
		Success: true, Configuration: now.values, Environment: now.environment,
		Timestamp: unixSeconds(now.since), SnapshotID: now.active().SnapshotID,
		Building: e.building.Load(),
	})
}

func (e *Engine) getStatus(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, StatusResponse{Success: true, Status: e.status()})
}

func (e *Engine) status() Status {
	now := e.current.Load()
	return Status{
		CurrentConfig: now.values, Environment: now.environment,
		TotalSnapshots: len(now.snapshots), MaxSnapshots: maxSnapshots,
		MemoryBytes: e.memory(), MemoryLimitBytes: e.limit,
		Generation: now.generation, Performance: now.latencies.figures(),
	}
}

func (e *Engine) getHealth(w http.ResponseWriter, _ *http.Request) {
	// Each holds by construction: New fails otherwise, and snapshots are kept
	// in memory.
	answer(w, http.StatusOK, HealthResponse{Success: true, Status: e.status(), Health: Health{
		Healthy: true,
		Checks: map[string]bool{
			"config_manager_initialized": true, "config_loaded": true,
			"snapshots_available": true, "backup_directory_writable": true,
		},
	}})
}

func (e *Engine) getSchema(w http.ResponseWriter, _ *http.Request) {
	text, err := schema.Default().JSONSchema()
	if err != nil {
		fail(w, http.StatusInternalServerError, "The schema cannot be written", err.Error())
		return
	}
	info := map[string]schema.Parameter{}
	for _, parameter := range rules().Parameters() {
		info[parameter.Name] = parameter
	}
	answer(w, http.StatusOK, map[string]any{
		"success": true, "schema": json.RawMessage(text), "parameter_info": info, "environments": schema.Default().Environments(),
	})
}

func (e *Engine) getSnapshots(w http.ResponseWriter, _ *http.Request) {
	list := slices.Clone(e.current.Load().snapshots)
	list[len(list)-1].IsActive = true
	slices.Reverse(list)
	answer(w, http.StatusOK, Snapshots{Success: true, Snapshots: list, TotalCount: len(list)})
}

func (e *Engine) postUpdate(w http.ResponseWriter, r *http.Request) {
	var update dtesn.Update
	if !decode(w, r, &update) || !e.owns(w, update) {
		return
	}
	if update.ValidateOnly {
		e.validate(w, update)
		return
	}
	wish := change{values: map[string]schema.Value{update.Parameter: update.Value}, description: update.Description}
	if wish.description == "" {
		wish.description = "Update " + update.Parameter
	}
	before, after, reasons, err := e.apply(r.Context(), wish)
	if refused(w, "Failed to update "+update.Parameter, reasons, err) {
		return
	}
	answer(w, http.StatusOK, Response{
		Success: true, Message: fmt.Sprintf("Parameter %s updated successfully", update.Parameter),
		Data: UpdateData{
			Updated:    updated(before, after, update.Parameter),
			SnapshotID: after.active().SnapshotID, RollbackSnapshot: before.active().SnapshotID,
		},
	})
}

func updated(before, after *state, name string) Updated {
	return Updated{Parameter: name, OldValue: before.values.Get(name), NewValue: after.values.Get(name)}
}

func (e *Engine) postBatch(w http.ResponseWriter, r *http.Request) {
	var batch dtesn.BatchUpdate
	if !decode(w, r, &batch) || !e.owns(w, batch.Updates...) {
		return
	}
	values, reason := valuesOf(batch)
	if reason != "" {
		fail(w, http.StatusBadRequest, "Batch update failed", reason)
		return
	}
	wish := change{values: values, description: batch.Description, snapshotID: batch.SnapshotID, revision: batch.Revision}
	if wish.description == "" {
		wish.description = fmt.Sprintf("Batch update of %d parameters", len(values))
	}
	before, after, reasons, err := e.apply(r.Context(), wish)
	if refused(w, "Batch update failed", reasons, err) {
		return
	}
	data := BatchData{
		SnapshotID: after.active().SnapshotID, RollbackSnapshot: before.active().SnapshotID,
		Reinitialized: append([]string{}, reinitialized(before.values, after.values)...),
	}
	for _, update := range batch.Updates {
		data.UpdatedParameters = append(data.UpdatedParameters, updated(before, after, update.Parameter))
	}
	answer(w, http.StatusOK, Response{
		Success: true, Message: fmt.Sprintf("%d parameters updated successfully", len(values)), Data: data,
	})
}

// valuesOf collects what a batch sets, or says why it is none.
func valuesOf(batch dtesn.BatchUpdate) (map[string]schema.Value, string) {
	values := make(map[string]schema.Value, len(batch.Updates))
	dry := batch.ValidateOnly
	for _, update := range batch.Updates {
		if _, twice := values[update.Parameter]; twice {
			return nil, fmt.Sprintf("the batch sets %q twice", update.Parameter)
		}
		values[update.Parameter] = update.Value
		dry = dry || update.ValidateOnly
	}
	switch {
	case dry:
		return nil, "a batch has no validate_only: use POST " + dtesn.PathValidate + " for each parameter"
	case len(values) == 0:
		return nil, "the batch has no updates"
	}
	return values, ""
}

func (e *Engine) postValidate(w http.ResponseWriter, r *http.Request) {
	var update dtesn.Update
	if decode(w, r, &update) {
		e.validate(w, update)
	}
}

// validate judges one value laid over what runs, and changes nothing.
func (e *Engine) validate(w http.ResponseWriter, update dtesn.Update) {
	_, reasons := overlay(e.current.Load().values, map[string]schema.Value{update.Parameter: update.Value})
	answer(w, http.StatusOK, Response{Success: reasons == nil, Message: "Validation completed", Errors: reasons})
}

func (e *Engine) postRollback(w http.ResponseWriter, r *http.Request) {
	var request RollbackRequest
	if !decode(w, r, &request) {
		return
	}
	target, ok := e.current.Load().snapshot(request.SnapshotID)
	if !ok {
		fail(w, http.StatusOK, "Rollback failed", fmt.Sprintf("no snapshot %q is kept: GET %s lists them", request.SnapshotID, dtesn.PathSnapshots))
		return
	}
	before, after, reasons, err := e.apply(r.Context(), change{
		values: target.ConfigData.Map(), description: "Rollback to " + target.SnapshotID, revision: target.Revision,
	})
	if refused(w, "Rollback failed", reasons, err) {
		return
	}
	answer(w, http.StatusOK, Response{
		Success: true, Message: "Configuration rolled back to " + target.SnapshotID,
		Data: RollbackData{
			SnapshotID: after.active().SnapshotID, RestoredSnapshot: target.SnapshotID,
			RollbackSnapshot: before.active().SnapshotID, Configuration: after.values,
		},
	})
}

func (e *Engine) postEnvironment(w http.ResponseWriter, r *http.Request) {
	var request dtesn.EnvironmentRequest
	if !decode(w, r, &request) {
		return
	}
	environment, err := schema.Default().ParseEnvironment(request.Environment)
	if err != nil {
		fail(w, http.StatusBadRequest, "Failed to set environment", err.Error())
		return
	}
	previous, ok := e.relabel(environment)
	if !ok {
		fail(w, http.StatusConflict, "Failed to set environment", fmt.Sprintf("this engine is pinned to %s", previous))
		return
	}
	answer(w, http.StatusOK, Response{
		Success: true, Message: fmt.Sprintf("Environment set to %s", environment),
		Data: EnvironmentData{Environment: string(environment), PreviousEnvironment: previous},
	})
}

// owns reports whether the updates are for this engine; if not it answers 403.
// Only a pinned label decides: a label that anybody may set proves nothing.
func (e *Engine) owns(w http.ResponseWriter, updates ...dtesn.Update) bool {
	here := e.current.Load().environment
	for _, update := range updates {
		if e.pinned && update.Environment != "" && update.Environment != here {
			fail(w, http.StatusForbidden, "Wrong environment", fmt.Sprintf("the update is for %q, this engine is pinned to %s", update.Environment, here))
			return false
		}
	}
	return true
}

// decode reads the body into request; if it cannot it answers 400, or 408 to
// one that does not come. A body has its own deadline because a connection may
// be idle for as long as it likes.
func decode(w http.ResponseWriter, r *http.Request, request any) bool {
	conn := http.NewResponseController(w) // what a test hands in may know no deadlines
	_ = conn.SetReadDeadline(time.Now().Add(transferTime))
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, dtesn.MaxBody))
	err := decoder.Decode(request)
	if err == nil && decoder.Decode(&struct{}{}) != io.EOF {
		err = errors.New("more follows the first JSON value")
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		fail(w, http.StatusRequestTimeout, "The body did not come", fmt.Sprintf("a body may take %v", transferTime))
		return false
	}
	_ = conn.SetReadDeadline(time.Time{}) // while it works, the server reads on to see who leaves
	if err != nil {
		fail(w, http.StatusBadRequest, "The body is not what this path takes", err.Error())
		return false
	}
	return true
}

// refused answers for a change that did not come to pass.
func refused(w http.ResponseWriter, message string, reasons []string, err error) bool {
	switch {
	case err != nil:
		fail(w, http.StatusServiceUnavailable, message, err.Error())
	case reasons != nil:
		fail(w, http.StatusOK, message, reasons...)
	default:
		return false
	}
	return true
}

func fail(w http.ResponseWriter, status int, message string, reasons ...string) {
	answer(w, status, Response{Message: message, Errors: reasons})
}

func answer(w http.ResponseWriter, status int, value any) {
	text, err := json.Marshal(value)
	if err != nil {
		status, text = http.StatusInternalServerError, []byte(`{"success":false,"message":"The answer cannot be written"}`)
	}
	text = append(text, '\n')
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(transferTime))
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	_, _ = w.Write(text) // who left misses nothing
}
