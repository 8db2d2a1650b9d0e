package dtesn

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dtesn-agent/dtesn/api"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

var (
	rules   = schema.Default().For("production")
	running = rules.Defaults()
)

var batch = api.Batch{
	Parameters: running, Description: "a batch", SnapshotID: "snapshot_1699123456_0015", Revision: strings.Repeat("a", 40),
}

func TestSendClassifies(t *testing.T) {
	t.Parallel()
	const short = 150 * time.Millisecond
	long := strings.Repeat("é", 3000)
	for name, row := range map[string]struct {
		batch, label func(net.Conn, *http.Request) bool
		timeout      time.Duration
		verdict      api.Verdict
		broken       bool
		errors       []string // as Answer.Errors
		says         string   // in Answer.Err
	}{
		"accepted":               {verdict: api.VerdictAccepted},
		"chunked":                {batch: writes("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{\"success\": true\r\n1\r\n}\r\n0\r\n\r\n"), verdict: api.VerdictAccepted},
		"100 first":              {batch: writes("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{\"success\":true}"), verdict: api.VerdictAccepted},
		"200 success false":      {batch: replies(200, `{"success": false, "message": "no", "errors": ["Invalid value for max_membrane_depth: 100"]}`), verdict: api.VerdictRejected, errors: []string{"Invalid value for max_membrane_depth: 100"}},
		"200 only a message":     {batch: replies(200, `{"success": false, "message": "no room", "errors": null}`), verdict: api.VerdictRejected, errors: []string{"no room"}},
		"200 no reason":          {batch: replies(200, `{"success": false}`), verdict: api.VerdictRejected, errors: []string{"the engine answered 200 OK without a reason"}},
		"400 detail string":      {batch: replies(400, `{"detail": "Batch update\nfailed:\u001b[31m red"}`), verdict: api.VerdictRejected, errors: []string{"Batch update failed: [31m red"}},
		"409 detail object":      {batch: replies(409, `{"detail": {"code": 7}}`), verdict: api.VerdictRejected, errors: []string{`{"code": 7}`}},
		"400 detail answer":      {batch: replies(400, `{"detail": {"success": false, "validation_errors": ["too many units", "and too deep"], "parameter": "x"}}`), verdict: api.VerdictRejected, errors: []string{"too many units", "and too deep"}},
		"422 detail list":        {batch: replies(422, `{"detail": [{"loc": ["body", "updates", 0, "value"], "msg": "value is not a valid integer", "type": "type_error.integer"}, {"loc": [], "msg": "and this"}]}`), verdict: api.VerdictRejected, errors: []string{"body → updates → 0 → value: value is not a valid integer", "and this"}},
		"400 no JSON":            {batch: replies(400, "<h1>Bad Request</h1>\n"), verdict: api.VerdictRejected, errors: []string{"<h1>Bad Request</h1>"}},
		"422 cut short":          {batch: writes("HTTP/1.1 422 X\r\nContent-Length: 100\r\n\r\n{"), verdict: api.VerdictRejected, errors: []string{"422 Unprocessable Entity, and the reason was cut short"}},
		"a long reason":          {batch: replies(400, `{"detail": "`+long+`"}`), verdict: api.VerdictRejected, errors: []string{strings.Repeat("é", 510) + "…"}},
		"200 garbage":            {batch: replies(200, "garbage"), verdict: api.VerdictUnknown, says: "neither yes nor no"},
		"200 success no bool":    {batch: replies(200, `{"success": "true"}`), verdict: api.VerdictUnknown, says: "neither yes nor no"},
		"200 two values":         {batch: replies(200, `{"success": true}{"success": false}`), verdict: api.VerdictUnknown, says: "neither yes nor no"},
		"200 success twice":      {batch: replies(200, `{"success": false, "success": true}`), verdict: api.VerdictUnknown, says: "neither yes nor no"},
		"200 Success":            {batch: replies(200, `{"Success": true}`), verdict: api.VerdictUnknown, says: "neither yes nor no"},
		"200 empty":              {batch: replies(200, ""), verdict: api.VerdictUnknown, says: "nothing"},
		"204":                    {batch: writes("HTTP/1.1 204 No Content\r\n\r\n"), verdict: api.VerdictUnknown, says: "204"},
		"307":                    {batch: replies(307, ""), verdict: api.VerdictForeign, says: "not a DTESN engine"},
		"401":                    {batch: replies(401, `{"detail": "who are you"}`), verdict: api.VerdictForeign, says: "who are you"},
		"404":                    {batch: replies(404, "no such page"), verdict: api.VerdictForeign, says: "404 Not Found: no such page"},
		"500":                    {batch: replies(500, `{"detail": "boom"}`), verdict: api.VerdictUnknown, says: "500 Internal Server Error: boom"},
		"503 no JSON":            {batch: replies(503, "<h1>busy</h1>"), verdict: api.VerdictUnknown, says: "busy"},
		"no HTTP":                {batch: writes("SSH-2.0-OpenSSH_9.6\r\n\r\n"), verdict: api.VerdictUnknown, says: "not HTTP"},
		"10 MB":                  {batch: replies(200, strings.Repeat(" ", 10<<20)+`{"success": true}`), verdict: api.VerdictUnknown, says: "larger than 1024 KiB"},
		"endless header":         {batch: writes("HTTP/1.1 200 OK\r\n" + strings.Repeat("X: "+strings.Repeat("y", 1000)+"\r\n", 3000)), verdict: api.VerdictUnknown, says: "larger than"},
		"1xx for ever":           {batch: writes(strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 100)), verdict: api.VerdictUnknown, says: "1xx"},
		"hangs after":            {batch: hangs, timeout: short, verdict: api.VerdictUnknown, says: "no whole answer in time"},
		"slow bytes":             {batch: slowly, timeout: short, verdict: api.VerdictUnknown, says: "no whole answer in time"},
		"drops the reply":        {batch: writes(""), verdict: api.VerdictUnknown, broken: true, says: "broke"},
		"reset":                  {batch: func(net.Conn, *http.Request) bool { return false }, verdict: api.VerdictUnknown, broken: true, says: "broke"},
		"dies in the header":     {batch: writes("HTTP/1.1 200 O"), verdict: api.VerdictUnknown, broken: true, says: "broke"},
		"dies in the body":       {batch: writes("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"success\": true"), verdict: api.VerdictUnknown, broken: true, says: "broke"},
		"label refused 403":      {label: replies(403, `{"detail": "this is staging"}`), verdict: api.VerdictForeign, says: "403 Forbidden when told that this is production: this is staging"},
		"label refused 409":      {label: replies(409, `{"success": false, "errors": ["pinned"]}`), verdict: api.VerdictForeign, says: "pinned"},
		"label refused by a 200": {label: replies(200, `{"success": false, "message": "no"}`), verdict: api.VerdictForeign, says: "no"},
		"label fails":            {label: replies(500, ""), verdict: api.VerdictNotSent, says: "500"},
		"label dropped":          {label: writes(""), verdict: api.VerdictNotSent, says: "broke"},
		"label hangs":            {label: hangs, timeout: short, verdict: api.VerdictNotSent, says: "in time"},
		"label, then close":      {label: writes("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"), verdict: api.VerdictAccepted},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := (&misbehaver{onBatch: row.batch, onLabel: row.label}).start(t)
			answer := m.client(row.timeout).Send(t.Context(), batch)
			if answer.Verdict != row.verdict || answer.Broken != row.broken {
				t.Fatalf("got %s, broken %t (%v %q), want %s, broken %t", answer.Verdict, answer.Broken, answer.Err, answer.Errors, row.verdict, row.broken)
			}
			if fmt.Sprint(answer.Errors) != fmt.Sprint(row.errors) {
				t.Errorf("errors %q, want %q", answer.Errors, row.errors)
			}
			if row.says != "" && (answer.Err == nil || !strings.Contains(answer.Err.Error(), row.says)) {
				t.Errorf("says %v, want %q in it", answer.Err, row.says)
			}
			asked := row.verdict != api.VerdictNotSent && m.batches.Load() > 0
			if named := answer.Peer.PID == int32(os.Getpid()) && answer.Peer.Socket != ""; named != asked {
				t.Errorf("verdict %s with peer %+v", answer.Verdict, answer.Peer)
			}
			if row.verdict == api.VerdictForeign && row.label != nil {
				var foreign *api.ForeignError
				if !errors.As(answer.Err, &foreign) || !foreign.Environment || m.batches.Load() != 0 {
					t.Errorf("a refused label gave %v, and %d batches were sent", answer.Err, m.batches.Load())
				}
			}
		})
	}
}

func TestSendToAServerThatReadsNothing(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "e.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	client := New(Options{Socket: socket, Rules: rules, Timeout: 100 * time.Millisecond})
	answer := client.Send(t.Context(), batch)
	if answer.Verdict != api.VerdictNotSent || !errors.Is(answer.Err, context.DeadlineExceeded) {
		t.Errorf("got %s (%v), want not sent: the batch was never written", answer.Verdict, answer.Err)
	}
	if _, err := client.Read(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("read gave %v, want a timeout", err)
	}
}

func TestSendSaysEveryParameter(t *testing.T) {
	t.Parallel()
	m := (&misbehaver{}).start(t)
	if answer := m.client(0).Send(t.Context(), batch); answer.Verdict != api.VerdictAccepted {
		t.Fatal(answer.Err)
	}
	var updates []string
	for _, name := range rules.Names() {
		updates = append(updates, fmt.Sprintf(`{"parameter":%q,"value":%v,"environment":"production"}`, name, running.Get(name)))
	}
	want := `{"updates":[` + strings.Join(updates, ",") + `],"description":"a batch","snapshot_id":"snapshot_1699123456_0015","revision":"` + batch.Revision + `"}`
	if got := string(*m.body.Load()); got != want {
		t.Errorf("sent %s\nwant %s", got, want)
	}
	if m.accepted.Load() != 1 || m.labelled.Load() != 1 {
		t.Errorf("%d connections, %d labels, want one of each", m.accepted.Load(), m.labelled.Load())
	}
}

func TestReadOnlySendsNothing(t *testing.T) {
	t.Parallel()
	m := (&misbehaver{}).start(t)
	client := New(Options{Socket: m.socket, Rules: rules, ReadOnly: true})
	reading, err := client.Read(t.Context())
	if err != nil || reading.Environment != "development" || !reading.Parameters.Equal(running) {
		t.Errorf("read %+v, %v", reading, err)
	}
	if answer := client.Send(t.Context(), batch); answer.Verdict != api.VerdictNotSent || answer.Err == nil {
		t.Errorf("send gave %s, %v", answer.Verdict, answer.Err)
	}
	if m.labelled.Load()+m.batches.Load() != 0 {
		t.Error("a read-only client posted")
	}
}

func TestReadSetsTheLabelOnce(t *testing.T) {
	t.Parallel()
	m := (&misbehaver{}).start(t)
	client := m.client(0)
	for _, before := range []string{"development", ""} {
		reading, err := client.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if reading.Environment != "production" || reading.Relabelled != before || !reading.Parameters.Equal(running) {
			t.Errorf("read %+v", reading)
		}
		if reading.Peer.PID != int32(os.Getpid()) || reading.Peer.UID != uint32(os.Getuid()) || reading.Peer.Socket == "" {
			t.Errorf("peer %+v", reading.Peer)
		}
	}
	if m.labelled.Load() != 1 || m.accepted.Load() != 2 {
		t.Errorf("%d labels on %d connections, want 1 on 2", m.labelled.Load(), m.accepted.Load())
	}
}

func TestReadRefusesWhatIsNoEngine(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		current, label func(net.Conn, *http.Request) bool
		says           string
		foreign        bool
		environment    bool
	}{
		"404":              {current: replies(404, "nothing here"), says: "not a DTESN engine: GET /v1/config/current answered 404 Not Found", foreign: true},
		"html":             {current: replies(200, "<html>"), says: `answered "<html>"`, foreign: true},
		"other JSON":       {current: replies(200, `{"status": "ok"}`), says: "without success", foreign: true},
		"none of them":     {current: replies(200, `{"success": true, "configuration": {"enable_docs": true, "`+strings.ToUpper(rules.Names()[0])+`": 1}}`), says: "its configuration has none of the parameters " + rules.Names()[0] + ", ", foreign: true},
		"all null":         {current: replies(200, `{"success": true, "configuration": {"`+rules.Names()[0]+`": null}}`), says: "none of the parameters", foreign: true},
		"one twice":        {current: replies(200, strings.Replace(currentAnswer("production", nil), `"configuration":{`, `"configuration":{"`+rules.Names()[0]+`":1,`, 1)), says: "the name \"" + rules.Names()[0] + "\" appears twice", foreign: true},
		"success twice":    {current: replies(200, strings.Replace(currentAnswer("production", nil), `{`, `{"success":false,`, 1)), says: `the name "success" appears twice`, foreign: true},
		"Success":          {current: replies(200, strings.Replace(currentAnswer("production", nil), `"success"`, `"Success"`, 1)), says: "without success", foreign: true},
		"beyond int":       {current: replies(200, currentAnswer("production", map[string]any{"esn_reservoir_size": json.Number(strings.Repeat("9", 30))})), says: "want an integer", foreign: true},
		"a string":         {current: replies(200, currentAnswer("production", map[string]any{"esn_reservoir_size": "512"})), says: `esn_reservoir_size is "\"512\"", want an integer`, foreign: true},
		"a fraction":       {current: replies(200, currentAnswer("production", map[string]any{"max_membrane_depth": 4.5})), says: "want an integer", foreign: true},
		"bool as int":      {current: replies(200, currentAnswer("production", map[string]any{"enable_caching": 1})), says: "want a bool", foreign: true},
		"no configuration": {current: replies(200, `{"success": true, "configuration": []}`), says: "its configuration is \"[]\": ", foreign: true},
		"nothing":          {current: replies(200, `{"success": true}`), says: "its configuration is nothing: ", foreign: true},
		"label refused":    {label: replies(409, `{"detail": "pinned to staging"}`), says: "pinned to staging", foreign: true, environment: true},
		"label ignored":    {label: replies(200, `{"success": true}`), says: `labelled "development"`, foreign: true, environment: true},
		"success false":    {current: replies(200, `{"success": false, "message": "not ready"}`), says: "not ready"},
		"500":              {current: replies(500, `{"detail": "boom"}`), says: "boom"},
		"cut":              {current: writes("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"), says: "broke"},
		"10 MB":            {current: replies(200, strings.Repeat(" ", 10<<20)), says: "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := (&misbehaver{onCurrent: row.current, onLabel: row.label}).start(t)
			_, err := m.client(0).Read(t.Context())
			if err == nil || !strings.Contains(err.Error(), row.says) {
				t.Fatalf("got %v, want %q in it", err, row.says)
			}
			if strings.ContainsAny(err.Error(), "\n\r\x1b") {
				t.Errorf("the error is not one line: %q", err)
			}
			var foreign *api.ForeignError
			if errors.As(err, &foreign) != row.foreign || row.foreign && foreign.Environment != row.environment {
				t.Errorf("%v: foreign %+v, want %t, environment %t", err, foreign, row.foreign, row.environment)
			}
		})
	}
}

func TestSocketsThatCannotBeDialed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	regular := filepath.Join(dir, "regular")
	if err := os.WriteFile(regular, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dead := filepath.Join(dir, "dead.sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	_ = listener.Close()
	for socket, want := range map[string]struct{ cause, hint string }{
		filepath.Join(dir, "none.sock"):        {"there is no socket", "start the engine, or name its socket with --engine"},
		filepath.Join(regular, "e.sock"):       {"there is no socket", "start the engine, or name its socket with --engine"},
		regular:                                {"it is no socket but a regular file", "name the engine's socket with --engine"},
		dir:                                    {"it is no socket but a directory", "name the engine's socket with --engine"},
		dead:                                   {"nobody listens on the socket", "start the engine again, it left the file behind"},
		filepath.Join(dir, string(make108(t))): {"a Unix socket takes 107 at most", "use a shorter path, or a link to its directory"},
	} {
		client := New(Options{Socket: socket, Rules: rules})
		if _, err := client.Read(t.Context()); err == nil || !strings.Contains(err.Error(), want.cause) || problem.Hint(err) != want.hint {
			t.Errorf("read: %v, hint %q, want %q", err, problem.Hint(err), want)
		}
		answer := client.Send(t.Context(), batch)
		if answer.Verdict != api.VerdictNotSent || answer.Err == nil || answer.Peer != (api.Peer{}) {
			t.Errorf("send: %+v", answer)
		}
	}
	if _, err := New(Options{Socket: dead, Rules: rules}).Read(t.Context()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%v does not wrap ECONNREFUSED", err)
	}
}

func make108(t *testing.T) []byte {
	t.Helper()
	return []byte(strings.Repeat("x", 108))
}

func TestPermissionDenied(t *testing.T) {
	t.Parallel()
	err := explain("/run/e.sock", os.NewSyscallError("connect", syscall.EACCES))
	if !strings.HasSuffix(err.Error(), "may not connect: permission denied") || !strings.HasPrefix(problem.Hint(err), "run the agent as the engine's user") || !errors.Is(err, os.ErrPermission) {
		t.Error(err)
	}
}

func TestPeerChangesWithTheSocket(t *testing.T) {
	t.Parallel()
	first := (&misbehaver{}).start(t)
	a, err := first.client(0).Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second := (&misbehaver{}).start(t)
	if err := os.Rename(second.socket, first.socket); err != nil {
		t.Fatal(err)
	}
	b, err := first.client(0).Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if a.Peer == b.Peer {
		t.Errorf("two sockets, one peer: %+v", a.Peer)
	}
}

func TestCancelledIsNotBroken(t *testing.T) {
	t.Parallel()
	arrived := make(chan struct{})
	m := (&misbehaver{onBatch: func(conn net.Conn, r *http.Request) bool {
		close(arrived)
		return hangs(conn, r)
	}}).start(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		<-arrived
		cancel()
	}()
	answer := m.client(0).Send(ctx, batch)
	if answer.Verdict != api.VerdictUnknown || answer.Broken || !errors.Is(answer.Err, context.Canceled) {
		t.Errorf("got %s, broken %t, %v", answer.Verdict, answer.Broken, answer.Err)
	}
}

func FuzzReasons(f *testing.F) {
	f.Add([]byte(`{"detail": [{"loc": [1, "x"], "msg": "\u0000\u202e"}]}`))
	f.Add([]byte("\xff\xfe\x00<html>"))
	f.Add([]byte(`{"errors": ["a", 1, null, {"b": []}], "message": "m"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		found := reasons(body)
		if len(found) > maxReasons {
			t.Errorf("%d reasons", len(found))
		}
		for _, text := range found {
			if len(text) > maxReason || text == "" || strings.ToValidUTF8(text, "") != text || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }) {
				t.Errorf("not one clean line: %q", text)
			}
		}
	})
}

// TestBlamed reads the parameter that a server calls unknown.
func TestBlamed(t *testing.T) {
	for body, want := range map[string]string{
		`{"success": false, "errors": ["Unknown parameter: allowed_origins"]}`:              "allowed_origins",
		`{"success": false, "errors": ["unknown parameter 'x.y'."]}`:                        "x.y",
		`{"success": false, "errors": ["no"], "unknown_parameter": "enable_docs"}`:          "enable_docs",
		`{"success": false, "errors": ["Invalid value for max_membrane_depth: 100"]}`:       "",
		`{"success": false, "errors": ["esn_reservoir_size: some parameters are unknown"]}`: "",
	} {
		if a := judge(http.StatusOK, []byte(body), nil); a.Verdict != api.VerdictRejected || a.Blamed != want {
			t.Errorf("%s: %s, blamed %q, want %q", body, a.Verdict, a.Blamed, want)
		}
	}
}
