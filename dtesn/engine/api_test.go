package engine

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"

	"dtesn-agent/dtesn"
	"dtesn-agent/schema"
)

func newEngine(t testing.TB, options Options) *Engine {
	t.Helper()
	e, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// ask sends one request to the handler and decodes the answer into an A.
func ask[A any](t testing.TB, e *Engine, method, path, body string) (int, A) {
	t.Helper()
	w := httptest.NewRecorder()
	e.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body)))
	var answer A
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
		t.Fatalf("%s %s: %d %q: %v", method, path, w.Code, w.Body, err)
	}
	if kind := w.Header().Get("Content-Type"); kind != "application/json" {
		t.Errorf("%s %s: content type %q", method, path, kind)
	}
	return w.Code, answer
}

type object = map[string]any

func get(t testing.TB, e *Engine, path string) object {
	t.Helper()
	status, answer := ask[object](t, e, "GET", path, "")
	if status != 200 || answer["success"] != true {
		t.Fatalf("GET %s: %d %v", path, status, answer)
	}
	return answer
}

func statusOf(t testing.TB, e *Engine) Status {
	t.Helper()
	_, answer := ask[StatusResponse](t, e, "GET", dtesn.PathStatus, "")
	return answer.Status
}

// accept sends a request that must be taken and returns its data.
func accept(t testing.TB, e *Engine, path, body string) object {
	t.Helper()
	status, answer := ask[object](t, e, "POST", path, body)
	if status != 200 || answer["success"] != true || answer["message"] == "" || answer["errors"] != nil {
		t.Fatalf("POST %s %s: %d %v", path, body, status, answer)
	}
	data, _ := answer["data"].(object)
	return data
}

// reject sends a request that must be refused so, and looks that nothing
// changed. It returns the reasons.
func reject(t testing.TB, e *Engine, want int, path, body string) string {
	t.Helper()
	before := e.current.Load()
	status, answer := ask[Response](t, e, "POST", path, body)
	if status != want || answer.Success || answer.Message == "" || len(answer.Errors) == 0 || answer.Data != nil {
		t.Errorf("POST %s %.80s: %d %+v, want %d and reasons", path, body, status, answer, want)
	}
	if e.current.Load() != before {
		t.Errorf("POST %s %.80s: refused, yet something changed", path, body)
	}
	return strings.Join(answer.Errors, "\n")
}

func set(name string, value any) string {
	return fmt.Sprintf(`{"parameter": %q, "value": %v}`, name, value)
}

func batchOf(updates ...string) string {
	return `{"updates": [` + strings.Join(updates, ",") + `], "description": "several"}`
}

// covers fails unless got has all that want has, of the same JSON kinds.
func covers(t *testing.T, where string, want, got any) {
	t.Helper()
	if reflect.TypeOf(want) != reflect.TypeOf(got) {
		t.Errorf("%s is %v (%T), documented as %v (%T)", where, got, got, want, want)
		return
	}
	switch want := want.(type) {
	case object:
		for key, value := range want {
			covers(t, where+"."+key, value, got.(object)[key])
		}
	case []any:
		for _, element := range got.([]any) {
			covers(t, where+"[]", want[0], element)
		}
	}
}

// documented are answers as the documentation of the DTESN server shows them.
var documented = map[string]string{
	"update": `{"success": true, "message": "Parameter esn_reservoir_size updated successfully", "data": {
		"parameter": "esn_reservoir_size", "old_value": 512, "new_value": 1024,
		"snapshot_id": "snapshot_1699123456_0001", "rollback_snapshot": "snapshot_1699123455_0001"}}`,
	"invalid": `{"success": false, "message": "Validation completed", "errors": ["Invalid value for max_membrane_depth: 100"]}`,
	"health": `{"success": true, "health": {"healthy": true, "checks": {"config_manager_initialized": true,
		"config_loaded": true, "snapshots_available": true, "backup_directory_writable": true}},
		"status": {"current_config": {"max_membrane_depth": 4}, "environment": "production", "total_snapshots": 15,
		"max_snapshots": 50, "backup_directory": "", "auto_backup_enabled": true, "registered_callbacks": 2}}`,
	"snapshots": `{"success": true, "snapshots": [{"snapshot_id": "snapshot_1699123456_0001", "timestamp": 1699123456.789,
		"description": "Updated", "environment": "production", "is_active": true, "validation_errors": null,
		"config_data": {"max_membrane_depth": 4, "esn_reservoir_size": 1024, "bseries_max_order": 8, "enable_caching": true,
		"cache_ttl_seconds": 300, "enable_performance_monitoring": true}}]}`,
}

func document(t *testing.T, name string) object {
	t.Helper()
	var value object
	if err := json.Unmarshal([]byte(documented[name]), &value); err != nil {
		t.Fatal(err)
	}
	return value
}

func TestAnswersHaveTheDocumentedShapes(t *testing.T) {
	t.Parallel()
	e := newEngine(t, Options{})
	_, update := ask[object](t, e, "POST", dtesn.PathUpdate, set("esn_reservoir_size", 1024))
	covers(t, "update", document(t, "update"), update)
	if data := update["data"].(object); update["message"] != document(t, "update")["message"] || data["old_value"] != 512.0 || data["new_value"] != 1024.0 {
		t.Errorf("update answers %v", update)
	}
	_, invalid := ask[object](t, e, "POST", dtesn.PathValidate, set("max_membrane_depth", 100))
	covers(t, "validate", document(t, "invalid"), invalid)
	if invalid["success"] != false {
		t.Error("depth 100 is valid")
	}
	covers(t, "health", document(t, "health"), get(t, e, dtesn.PathHealth))
	covers(t, "status", document(t, "health")["status"], get(t, e, dtesn.PathStatus)["status"])
	covers(t, "snapshots", document(t, "snapshots"), get(t, e, dtesn.PathSnapshots))
	current := get(t, e, dtesn.PathCurrent)
	covers(t, "current", document(t, "snapshots")["snapshots"].([]any)[0].(object)["config_data"], current["configuration"])
	if current["environment"] != "development" || current["snapshot_id"] == "" {
		t.Errorf("current answers %v", current)
	}
}

func TestSchemaTellsTheRules(t *testing.T) {
	t.Parallel()
	answer := get(t, newEngine(t, Options{}), dtesn.PathSchema)
	info := answer["parameter_info"].(object)
	if size := info["esn_reservoir_size"].(object); len(info) != len(rules().Names()) || size["apply"] != "rebuild" || size["managed"] != true || size["minimum"] != 64.0 || size["maximum"] != 16384.0 || size["critical"] != true {
		t.Errorf("parameter_info is %v", info)
	}
	if len(answer["environments"].([]any)) != len(schema.Default().Environments()) || answer["schema"].(object)["$schema"] == nil {
		t.Errorf("schema answers %v", answer)
	}
}

func TestUpdateRefuses(t *testing.T) {
	t.Parallel()
	e := newEngine(t, Options{})
	for _, c := range []struct{ body, reason string }{
		{set("esn_reservoir_size", 63), "esn_reservoir_size"},
		{set("esn_reservoir_size", 16385), "esn_reservoir_size"},
		{set("esn_reservoir_size", 1024.5), "esn_reservoir_size"},
		{set("esn_reservoir_size", `"1024"`), "esn_reservoir_size"},
		{set("esn_reservoir_size", "true"), "esn_reservoir_size"},
		{set("esn_reservoir_size", "null"), "esn_reservoir_size"},
		{set("esn_reservoir_size", "[1024]"), "esn_reservoir_size"},
		{set("esn_reservoir_size", "1e400"), "esn_reservoir_size"},
		{set("enable_caching", 1), "enable_caching"},
		{set("enable_docs", "true"), "no parameter is named enable_docs"},
		{set("temperature", 0.5), "no parameter is named temperature"},
		{set("cache_ttl_seconds", "null"), "cache_ttl_seconds"}, // not the default
		{`{"parameter": "cache_ttl_seconds"}`, "cache_ttl_seconds"},
		{set("max_membrane_depth", 17), "membrane depth 17"}, // alone it is in range
		{set("esn_reservoir_size", strings.Repeat("[", 5000)+strings.Repeat("]", 5000)), "esn_reservoir_size"},
		{set("esn_reservoir_size", strings.Repeat("9", 5000)), "esn_reservoir_size"},
		{`{}`, ""},
	} {
		if reason := reject(t, e, 200, dtesn.PathUpdate, c.body); !strings.Contains(reason, c.reason) {
			t.Errorf("%s: the reason %q does not name %q", c.body, reason, c.reason)
		}
		status, answer := ask[Response](t, e, "POST", dtesn.PathValidate, c.body)
		if status != 200 || answer.Success || len(answer.Errors) == 0 {
			t.Errorf("validate %s: %d %+v", c.body, status, answer)
		}
	}
}

func TestValidateOnlyChangesNothing(t *testing.T) {
	t.Parallel()
	e := newEngine(t, Options{})
	before := e.current.Load()
	accept(t, e, dtesn.PathUpdate, `{"parameter": "esn_reservoir_size", "value": 1024, "validate_only": true}`)
	accept(t, e, dtesn.PathValidate, set("esn_reservoir_size", 1024))
	if e.current.Load() != before {
		t.Error("a dry run changed something")
	}
	reject(t, e, 200, dtesn.PathUpdate, `{"parameter": "esn_reservoir_size", "value": 1, "validate_only": true}`)
	one := `{"parameter": "cache_ttl_seconds", "value": 7, "validate_only": true}`
	for _, body := range []string{batchOf(one), batchOf(set("max_membrane_depth", 2), one), `{"validate_only": true, "updates": [` + set("cache_ttl_seconds", 7) + `]}`} {
		if reason := reject(t, e, 400, dtesn.PathBatchUpdate, body); !strings.Contains(reason, dtesn.PathValidate) {
			t.Errorf("the reason %q does not say what to do instead", reason)
		}
	}
}

func TestBatchIsAllOrNothing(t *testing.T) {
	t.Parallel()
	e := newEngine(t, Options{})
	reject(t, e, 200, dtesn.PathBatchUpdate, batchOf(set("cache_ttl_seconds", 7), set("esn_reservoir_size", 1)))
	reject(t, e, 200, dtesn.PathBatchUpdate, batchOf(set("cache_ttl_seconds", 7), set("no_such", 1)))
	reject(t, e, 400, dtesn.PathBatchUpdate, batchOf())
	reject(t, e, 400, dtesn.PathBatchUpdate, batchOf(set("cache_ttl_seconds", 7), set("cache_ttl_seconds", 8)))
	first := e.current.Load().active().SnapshotID

	// Depth 64 is valid only beside the size that comes after it.
	data := accept(t, e, dtesn.PathBatchUpdate, `{"updates": [`+set("max_membrane_depth", 64)+`,`+set("esn_reservoir_size", 2048)+`,`+set("cache_ttl_seconds", 7)+`],
		"description": "deep", "snapshot_id": "snapshot_1699123456_0015", "revision": "abc"}`)
	want := object{
		"snapshot_id": "snapshot_1699123456_0015", "rollback_snapshot": first,
		"reinitialized": []any{"esn_reservoir_size", "max_membrane_depth"},
		"updated_parameters": []any{
			object{"parameter": "max_membrane_depth", "old_value": 4.0, "new_value": 64.0},
			object{"parameter": "esn_reservoir_size", "old_value": 512.0, "new_value": 2048.0},
			object{"parameter": "cache_ttl_seconds", "old_value": 300.0, "new_value": 7.0},
		},
	}
	if !reflect.DeepEqual(data, want) {
		t.Errorf("the batch answers\n%v, want\n%v", data, want)
	}
	newest := get(t, e, dtesn.PathSnapshots)["snapshots"].([]any)[0].(object)
	if newest["description"] != "deep" || newest["revision"] != "abc" || newest["snapshot_id"] != "snapshot_1699123456_0015" {
		t.Errorf("the snapshot is %v", newest)
	}
	if status := statusOf(t, e); status.Generation != 2 || status.CurrentConfig.Get("max_membrane_depth") != schema.Int(64) || status.CurrentConfig.Get("cache_ttl_seconds") != schema.Int(7) {
		t.Errorf("after the batch: %+v", status)
	}
	data = accept(t, e, dtesn.PathBatchUpdate, batchOf(set("cache_ttl_seconds", 8)))
	if statusOf(t, e).Generation != 2 || !reflect.DeepEqual(data["reinitialized"], []any{}) {
		t.Errorf("a runtime change rebuilt: %v", data)
	}
}

func TestRollback(t *testing.T) {
	t.Parallel()
	e := newEngine(t, Options{})
	accept(t, e, dtesn.PathUpdate, set("esn_reservoir_size", 1024))
	middle := e.current.Load()
	accept(t, e, dtesn.PathUpdate, set("cache_ttl_seconds", 7))
	last := e.current.Load()

	data := accept(t, e, dtesn.PathRollback, `{}`)
	if p := e.current.Load().params; p != middle.params || data["restored_snapshot"] != middle.active().SnapshotID || data["rollback_snapshot"] != last.active().SnapshotID {
		t.Errorf("back to %+v, %v", p, data)
	}
	data = accept(t, e, dtesn.PathRollback, fmt.Sprintf(`{"snapshot_id": %q}`, e.current.Load().snapshots[0].SnapshotID))
	if p := e.current.Load().params; p != defaults() || data["configuration"].(object)["esn_reservoir_size"] != 512.0 {
		t.Errorf("back to %+v, %v", p, data)
	}
	if reason := reject(t, e, 200, dtesn.PathRollback, `{"snapshot_id": "snapshot_1_1"}`); !strings.Contains(reason, "snapshot_1_1") {
		t.Errorf("the reason %q does not name the snapshot", reason)
	}
}

func TestHistoryIsBounded(t *testing.T) {
	t.Parallel()
	e := newEngine(t, Options{})
	first := e.current.Load().active().SnapshotID
	for i := range maxSnapshots + 5 {
		accept(t, e, dtesn.PathUpdate, set("cache_ttl_seconds", i+1))
	}
	_, answer := ask[Snapshots](t, e, "GET", dtesn.PathSnapshots, "")
	seen := map[string]bool{}
	for i, snapshot := range answer.Snapshots {
		seen[snapshot.SnapshotID] = true
		if snapshot.IsActive != (i == 0) || snapshot.ConfigData.Get("cache_ttl_seconds") != schema.Int(maxSnapshots+5-i) {
			t.Errorf("snapshot %d is %+v", i, snapshot)
		}
	}
	if len(seen) != maxSnapshots || answer.TotalCount != maxSnapshots || statusOf(t, e).TotalSnapshots != maxSnapshots {
		t.Errorf("%d snapshots are kept, %d said", len(seen), answer.TotalCount)
	}
	reject(t, e, 200, dtesn.PathRollback, fmt.Sprintf(`{"snapshot_id": %q}`, first))
}

// What clients say is kept in short, however much they say.
func TestHistoryKeepsShortTexts(t *testing.T) {
	t.Parallel()
	e := newEngine(t, Options{})
	long := strings.Repeat("ü", 50_000)
	accept(t, e, dtesn.PathBatchUpdate, `{"updates": [`+set("cache_ttl_seconds", 7)+`], "description": "`+long+`", "revision": "x`+long+`"}`)
	if s := e.current.Load().active(); s.Description != long[:200] || s.Revision != ("x" + long)[:199] {
		t.Errorf("kept are %d and %d bytes: %q, %q", len(s.Description), len(s.Revision), s.Description, s.Revision)
	}
}

func TestEnvironment(t *testing.T) {
	t.Parallel()
	free, pinned := newEngine(t, Options{}), newEngine(t, Options{Environment: "staging"})
	data := accept(t, free, dtesn.PathEnvironment, `{"environment": "production"}`)
	if data["environment"] != "production" || data["previous_environment"] != "development" || get(t, free, dtesn.PathCurrent)["environment"] != "production" {
		t.Errorf("set to production: %v", data)
	}
	reject(t, free, 400, dtesn.PathEnvironment, `{"environment": "moon"}`)
	reject(t, free, 400, dtesn.PathEnvironment, `{}`)

	accept(t, pinned, dtesn.PathEnvironment, `{"environment": "staging"}`)
	reject(t, pinned, 409, dtesn.PathEnvironment, `{"environment": "production"}`)
	foreign, own := `{"parameter": "cache_ttl_seconds", "value": 7, "environment": "production"}`, `{"parameter": "cache_ttl_seconds", "value": 7, "environment": "staging"}`
	reject(t, pinned, 403, dtesn.PathUpdate, foreign)
	reject(t, pinned, 403, dtesn.PathBatchUpdate, batchOf(set("max_membrane_depth", 2), foreign))
	accept(t, pinned, dtesn.PathUpdate, own)
	accept(t, free, dtesn.PathUpdate, own) // a label that anybody may set decides nothing
	if _, err := New(Options{Environment: "moon"}); err == nil {
		t.Error("an engine for the moon")
	}
}

func TestWhatIsNotUnderstood(t *testing.T) {
	t.Parallel()
	e := newEngine(t, Options{})
	gets := []string{dtesn.PathCurrent, dtesn.PathStatus, dtesn.PathSchema, dtesn.PathSnapshots, dtesn.PathHealth}
	posts := []string{dtesn.PathUpdate, dtesn.PathBatchUpdate, dtesn.PathValidate, dtesn.PathRollback, dtesn.PathEnvironment, dtesn.PathProcess}
	for _, path := range slices.Concat(gets, posts, []string{"/", "/v1/config", "/v1/config/nothing"}) {
		for _, method := range []string{"GET", "POST", "PUT", "DELETE"} {
			want := http.StatusMethodNotAllowed
			switch {
			case method == "GET" && slices.Contains(gets, path), method == "POST" && slices.Contains(posts, path):
				continue
			case !slices.Contains(gets, path) && !slices.Contains(posts, path):
				want = http.StatusNotFound
			}
			status, answer := ask[Response](t, e, method, path, "")
			if status != want || answer.Success || answer.Message == "" || len(answer.Errors) != 1 {
				t.Errorf("%s %s: %d %+v, want %d and a reason", method, path, status, answer, want)
			}
		}
	}
	large := `{"description": "` + strings.Repeat("a", dtesn.MaxBody) + `"}`
	for _, path := range posts {
		for _, body := range []string{
			``, `{`, `[]`, `"x"`, `{"parameter": 5, "updates": 5, "snapshot_id": 5, "environment": 5, "series": 5}`,
			`{} {}`, `{}x`, "\x00", large, "\ufeff{}", `{"a": ` + strings.Repeat("[", 20000), strings.Repeat(`{"value":`, 12000),
		} {
			reject(t, e, 400, path, body)
		}
	}
}

// FuzzHandler looks that no body makes the engine panic or answer anything
// but JSON.
func FuzzHandler(f *testing.F) {
	f.Add("update", []byte(set("esn_reservoir_size", 128)))
	f.Add("batch-update", []byte(batchOf(set("cache_ttl_seconds", 9))))
	f.Add("rollback", []byte(`{}`))
	e, err := New(Options{MemoryLimit: 8 << 20})
	if err != nil {
		f.Fatal(err)
	}
	handler := e.Handler()
	f.Fuzz(func(t *testing.T, name string, body []byte) {
		if !slices.Contains([]string{"update", "batch-update", "validate", "rollback", "environment"}, name) {
			return
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "POST", "/v1/config/"+name, bytes.NewReader(body)))
		text, _ := io.ReadAll(w.Body)
		if !json.Valid(text) || w.Code >= 500 {
			t.Errorf("POST %s %q: %d %q", name, body, w.Code, text)
		}
		if violations := rules().CheckParameters(e.current.Load().values); violations != nil {
			t.Errorf("POST %s %q made it run %+v", name, body, e.current.Load().params)
		}
	})
}
