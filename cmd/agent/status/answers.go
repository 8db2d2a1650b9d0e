package status

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"strconv"
	"time"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

// dryRun is the form of a dry run.
const dryRun = `{"parameter": NAME, "value": VALUE} or {"configuration": {NAME: VALUE, …}}`

func (s *Server) current(w http.ResponseWriter, _ *http.Request) {
	st := s.opt.Source.Status()
	if st.Current == nil {
		fail(w, http.StatusServiceUnavailable, "the engine was not read yet: "+st.Reason)
		return
	}
	reply(w, http.StatusOK, map[string]any{
		"success": true, "configuration": st.Current, "environment": st.Environment, "timestamp": record.Unix(time.Now()),
		"snapshot_id": st.Running.SnapshotID, "revision": st.Running.Revision,
	})
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) {
	reply(w, http.StatusOK, map[string]any{"success": true, "status": s.Full()})
}

func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	st := s.Full()
	checks := st.Checks(time.Now())
	code := http.StatusOK
	if !checks.Healthy() {
		code = http.StatusServiceUnavailable
	}
	reply(w, code, map[string]any{
		"success": true, "health": map[string]any{"healthy": checks.Healthy(), "checks": checks}, "status": st,
	})
}

func (s *Server) schema(w http.ResponseWriter, _ *http.Request) {
	jsonSchema, err := s.opt.Rules.Schema().JSONSchema()
	if err != nil {
		fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	info := map[string]schema.Parameter{}
	for _, p := range s.opt.Rules.Parameters() {
		info[p.Name] = p
	}
	reply(w, http.StatusOK, map[string]any{
		"success": true, "schema": json.RawMessage(jsonSchema), "parameter_info": info, "environments": s.opt.Rules.Schema().Environments(),
	})
}

// RecordJSON is a record as the API shows it: the content of snapshot.json
// with what follows from the commits around it.
func RecordJSON(rec record.Row) (json.RawMessage, error) {
	var errs any
	if len(rec.ValidationErrors) > 0 {
		errs = rec.ValidationErrors
	}
	return json.Marshal(struct {
		record.Record
		IsActive         bool           `json:"is_active"`
		Outcome          record.Outcome `json:"outcome"`
		ValidationErrors any            `json:"validation_errors"`
		Revision         string         `json:"revision"`
	}{rec.Record, rec.IsActive, rec.Outcome, errs, rec.Commit})
}

// noRecord answers why a record is not shown: with code where there is none of
// that name, as a fault where there is one that cannot be read.
func noRecord(w http.ResponseWriter, code int, err error) {
	if !errors.Is(err, fs.ErrNotExist) {
		code = http.StatusInternalServerError
	}
	fail(w, code, problem.Text(err))
}

func (s *Server) snapshots(w http.ResponseWriter, q *http.Request) {
	st := s.opt.Source.Status()
	limit := st.MaxSnapshots
	if given := q.URL.Query().Get("limit"); given != "" {
		n, err := strconv.Atoi(given)
		if err != nil || n < 1 || n > 1000 {
			fail(w, http.StatusBadRequest, "limit: "+strconv.Quote(given)+" is not a number from 1 to 1000")
			return
		}
		limit = n
	}
	records, err := s.opt.History.List(q.Context(), q.URL.Query().Get("before"), limit)
	if err != nil {
		noRecord(w, http.StatusBadRequest, err)
		return
	}
	list, size := []json.RawMessage{}, 0
	for i := range records {
		text, err := RecordJSON(records[i])
		if err != nil {
			fail(w, http.StatusInternalServerError, err.Error())
			return
		}
		if size += len(text); size > maxListing {
			break
		}
		list = append(list, text)
	}
	reply(w, http.StatusOK, map[string]any{"success": true, "snapshots": list, "total_count": st.TotalSnapshots})
}

func (s *Server) snapshot(w http.ResponseWriter, q *http.Request) {
	rec, err := s.opt.History.Lookup(q.Context(), q.PathValue("id"))
	if err != nil {
		noRecord(w, http.StatusNotFound, err)
		return
	}
	text, err := RecordJSON(rec)
	if err != nil {
		fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	reply(w, http.StatusOK, map[string]any{"success": true, "snapshot": text})
}

func (s *Server) diff(w http.ResponseWriter, q *http.Request) {
	rec, err := s.opt.History.Lookup(q.Context(), q.PathValue("id"))
	if err != nil {
		noRecord(w, http.StatusNotFound, err)
		return
	}
	st := s.opt.Source.Status()
	if st.Current == nil {
		fail(w, http.StatusServiceUnavailable, "the engine was not read yet: "+st.Reason)
		return
	}
	differences := map[string]any{}
	for _, c := range st.Current.Diff(rec.Config) {
		differences[c.Parameter] = map[string]any{"current": c.New, "snapshot": c.Old, "changed": true}
	}
	reply(w, http.StatusOK, map[string]any{
		"success": true, "snapshot_id": rec.ID, "differences": differences, "total_changes": len(differences),
	})
}

// validate is the dry run: what is asked about is laid over what runs (before
// anything runs, over the defaults) and checked whole.
func (s *Server) validate(w http.ResponseWriter, q *http.Request) {
	var ask struct {
		Parameter     string         `json:"parameter"`
		Value         any            `json:"value"`
		Configuration map[string]any `json:"configuration"`
		// The engine's own API has these beside; a dry run has no use for them.
		Description  any `json:"description"`
		Environment  any `json:"environment"`
		ValidateOnly any `json:"validate_only"`
	}
	if !isJSON(q) {
		fail(w, http.StatusUnsupportedMediaType, "send the dry run with Content-Type: application/json")
		return
	}
	dec := json.NewDecoder(q.Body)
	dec.DisallowUnknownFields()
	dec.UseNumber()
	err := dec.Decode(&ask)
	var shape *json.UnmarshalTypeError
	if errors.As(err, &shape) {
		err = fmt.Errorf("unexpected JSON %s", shape.Value)
	}
	if err == nil && !errors.Is(dec.Decode(new(json.RawMessage)), io.EOF) {
		err = errors.New("something follows the JSON object")
	}
	if err == nil && (ask.Parameter == "") == (ask.Configuration == nil) {
		err = errors.New("need either a parameter or a configuration")
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("the body is empty")
	}
	if err != nil {
		fail(w, http.StatusBadRequest, "invalid dry run: "+err.Error()+"; send "+dryRun)
		return
	}
	values := s.runs()
	if ask.Configuration == nil {
		ask.Configuration = map[string]any{ask.Parameter: ask.Value}
	}
	maps.Copy(values, ask.Configuration)
	_, violations := s.opt.Rules.Check(values)
	messages := make([]string, len(violations))
	for i, v := range violations {
		messages[i] = v.Message
	}
	if violations == nil {
		violations = []schema.Violation{}
	}
	reply(w, http.StatusOK, map[string]any{
		"success": len(violations) == 0, "message": "Validation completed", "errors": messages, "violations": violations,
	})
}

// runs returns the values that a dry run is laid over.
func (s *Server) runs() map[string]any {
	p := s.opt.Rules.Defaults()
	if st := s.opt.Source.Status(); st.Current != nil {
		p = s.opt.Rules.Known(*st.Current)
	}
	values := map[string]any{}
	for name, v := range p.Map() {
		values[name] = v
	}
	return values
}
