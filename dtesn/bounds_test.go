package dtesn

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"dtesn-agent/dtesn/api"
	"dtesn-agent/schema"
)

// pythonSchema is GET schema as the Python server answers it: other names of
// the types, ranges as texts, and one parameter less than it has.
const pythonSchema = `{"success": true, "schema": {"title": "DTESNConfig", "type": "object"}, "parameter_info": {
	"max_membrane_depth": {"type": "integer", "range": "1-64", "impact": "memory"},
	"esn_reservoir_size": {"type": "integer", "range": "64-16384"},
	"bseries_max_order": {"type": "integer", "range": "1-32"},
	"enable_caching": {"type": "boolean", "description": "Cache"},
	"cache_ttl_seconds": {"type": "integer", "range": "1-86400"}}, "environments": ["development"]}`

// ownSchema is GET schema as this project's servers answer it.
func ownSchema(t *testing.T, rules *schema.Rules) string {
	t.Helper()
	info := map[string]schema.Parameter{}
	for _, p := range rules.Parameters() {
		info[p.Name] = p
	}
	text, err := json.Marshal(map[string]any{"success": true, "parameter_info": info})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestBounds(t *testing.T) {
	t.Parallel()
	more := extended(t)
	info := func(entries string) func(net.Conn, *http.Request) bool {
		return replies(200, `{"parameter_info": {`+entries+`}}`)
	}
	// all is an engine that reports every parameter.
	all := rules.Defaults().With("temperature", schema.Int(1)).With("quantization", schema.Text("int8"))
	for name, row := range map[string]struct {
		rules  *schema.Rules
		answer func(net.Conn, *http.Request) bool
		runs   schema.Parameters
		listed int // parameters; -1 for no list
		lines  []string
	}{
		"Python":              {rules, replies(200, pythonSchema), rules.Defaults(), len(rules.Names()) - 1, nil},
		"Python, tighter":     {rules, replies(200, strings.Replace(pythonSchema, "1-64", "1-32", 1)), rules.Defaults(), len(rules.Names()) - 1, []string{"max_membrane_depth: the engine accepts 1-32, the schema 1-64"}},
		"our own":             {more, replies(200, ownSchema(t, more)), schema.Parameters{}, len(more.Names()), nil},
		"an older one":        {more, replies(200, ownSchema(t, rules)), rules.Defaults(), len(rules.Names()), []string{"the engine does not know quantization", "the engine does not know temperature"}},
		"a newer one":         {rules, replies(200, ownSchema(t, more)), rules.Defaults(), len(rules.Names()), nil},
		"both bounds":         {more, info(`"temperature": {"type": "float", "minimum": 0.10, "maximum": 1.5}`), all, 1, []string{"temperature: the engine accepts 0.10-1.5, the schema 0-2"}},
		"one bound":           {more, info(`"temperature": {"minimum": 0.5, "range": "1-1"}`), all, 1, []string{"temperature: the engine accepts 0.5-2, the schema 0-2"}},
		"wider":               {more, info(`"temperature": {"type": "number", "range": "-1.5-99"}, "quantization": {"type": "str", "values": ["fp8", "none", "int4", "int8"]}, "max_membrane_depth": {"type": "number"}`), all, 3, nil},
		"equal, otherwise":    {more, info(`"temperature": {"minimum": 0.0, "maximum": 2e0}`), all, 1, nil},
		"fewer values":        {more, info(`"quantization": {"type": "string", "values": ["int4", "fp8"]}`), all, 1, []string{"quantization: the engine does not accept int8, none"}},
		"another type":        {more, info(`"temperature": {"type": "int"}`), all, 1, []string{"temperature: the engine accepts the type int, the schema number"}},
		"an entry of nothing": {more, info(`"temperature": null, "quantization": [], "enable_caching": 5, "max_membrane_depth": "1-2"`), all, 4, nil},
		"nonsense in entries": {more, info(`"temperature": {"type": 5, "minimum": "1", "maximum": true, "range": "cold-hot", "values": {}}, "quantization": {"type": "enum", "values": [1], "minimum": 3}, "max_membrane_depth": {"maximum": 1e999, "range": "1-` + strings.Repeat("2", 100) + `"}`), all, 3, nil},
		"other parameters":    {rules, info(`"x": {"type": "int", "range": "1-1"}`), rules.Defaults(), 0, nil},
		"404":                 {rules, nil, rules.Defaults(), -1, nil},
		"405":                 {rules, replies(405, ""), rules.Defaults(), -1, nil},
		"501":                 {rules, replies(501, ""), rules.Defaults(), -1, nil},
		"html":                {rules, replies(200, "<html>"), rules.Defaults(), -1, nil},
		"other JSON":          {rules, replies(200, `{"parameter_info": []}`), rules.Defaults(), -1, nil},
		"an empty list":       {rules, info(""), rules.Defaults(), -1, nil},
		"one twice":           {rules, info(`"x": {}, "x": {}`), rules.Defaults(), -1, nil},
		"nothing":             {rules, replies(200, ""), rules.Defaults(), -1, nil},
		"204":                 {rules, writes("HTTP/1.1 204 No Content\r\n\r\n"), rules.Defaults(), -1, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := (&misbehaver{onSchema: row.answer}).start(t)
			bounds, err := New(Options{Socket: m.socket, Rules: row.rules, ReadOnly: true}).Bounds(t.Context())
			if err != nil || (bounds == nil) != (row.listed < 0) || bounds != nil && len(bounds) != row.listed {
				t.Fatalf("%v, %v; want %d", slices.Sorted(maps.Keys(bounds)), err, row.listed)
			}
			if lines := api.Compare(row.rules.Parameters(), bounds, api.Reading{Parameters: row.runs}); !slices.Equal(lines, row.lines) {
				t.Errorf("%q, want %q", lines, row.lines)
			}
			if m.labelled.Load()+m.batches.Load() != 0 {
				t.Error("something was posted")
			}
		})
	}
}

func TestBoundsFail(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		answer  func(net.Conn, *http.Request) bool
		timeout time.Duration
		says    string
		cause   error
	}{
		"hangs":                        {hangs, 100 * time.Millisecond, "in time", context.DeadlineExceeded},
		"slow":                         {slowly, 100 * time.Millisecond, "in time", context.DeadlineExceeded},
		"hangs, with a longer timeout": {hangs, time.Hour, "in time", context.DeadlineExceeded},
		"10 MB":                        {replies(200, strings.Repeat(" ", 10<<20)+pythonSchema), time.Hour, "larger than 1024 KiB", errTooLarge},
		"cut":                          {writes("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"), time.Hour, "broke", io.ErrUnexpectedEOF},
		"no HTTP":                      {writes("SSH-2.0\r\n\r\n"), time.Hour, "not HTTP", nil},
		"500":                          {replies(500, `{"detail": "boom"}`), time.Hour, "500 Internal Server Error: boom", nil},
		"429":                          {replies(429, ""), time.Hour, "429", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := (&misbehaver{onSchema: row.answer}).start(t)
			bounds, err := m.client(row.timeout).Bounds(t.Context())
			if bounds != nil || err == nil || isForeign(err) || !strings.Contains(err.Error(), row.says) || row.cause != nil && !errors.Is(err, row.cause) {
				t.Errorf("%v, %v; want %q", bounds, err, row.says)
			}
		})
	}
	if _, err := New(Options{Socket: "/nowhere/e.sock", Rules: rules}).Bounds(t.Context()); err == nil {
		t.Error("no engine, and no error")
	}
}

// FuzzDecode checks that no response makes the client panic or report texts that
// are not one short line.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(pythonSchema))
	f.Add([]byte(currentAnswer("production", map[string]any{"esn_reservoir_size": nil})))
	f.Add([]byte(`{"success": true, "configuration": {"enable_caching": true, "a": [{}]}, "parameter_info": {"enable_caching": {"type": "int", "range": "--1--2-", "values": [null]}}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, body []byte) {
		reading, err := decodeCurrent(rules, 200, body)
		if err == nil && (reading.Parameters.Len() == 0 || !rules.Known(reading.Parameters).Equal(reading.Parameters)) {
			t.Errorf("read %v", reading)
		}
		if err != nil && (len(err.Error()) > 1000 || strings.ContainsAny(err.Error(), "\n\x1b")) {
			t.Errorf("not one line: %q", err)
		}
		for _, text := range api.Compare(rules.Parameters(), decodeBounds(rules, body), reading) {
			if text != line(text) {
				t.Errorf("not one line: %q", text)
			}
		}
	})
}
