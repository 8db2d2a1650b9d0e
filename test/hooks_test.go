package test

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
)

// A receiver takes webhooks, and checks their signatures.
type receiver struct {
	*testing.T
	url    string
	secret []byte

	mu      sync.Mutex
	answers []int // to the next ones; then 200
	always  int   // to the others, if it is set; -1 for no answer
	ids     []string
	events  []apply.Event
}

func newReceiver(t *testing.T) *receiver {
	v := &receiver{T: t, secret: []byte(strings.Repeat("s", 32))}
	s := httptest.NewServer(v)
	t.Cleanup(s.Close)
	v.url = s.URL + "/hook?token=verysecret"
	return v
}

func (v *receiver) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	body, _ := io.ReadAll(q.Body)
	mac := hmac.New(sha256.New, v.secret)
	fmt.Fprintf(mac, "%s.%s.%s", q.Header.Get("webhook-id"), q.Header.Get("webhook-timestamp"), body)
	var e struct {
		SpecVersion, ID, Source, Type, Time string
		Data                                apply.Event
	}
	err := json.Unmarshal(body, &e)
	if err != nil || q.Header.Get("webhook-signature") != "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)) || q.Header.Get("Content-Type") != "application/cloudevents+json" ||
		e.SpecVersion != "1.0" || e.ID != q.Header.Get("webhook-id") || e.ID != idOf(e.Data, e.ID) || e.Type != "dev.dtesn."+string(e.Data.Type) || !strings.HasPrefix(e.Source, "/dtesn-agent/production/") {
		v.Errorf("%v: %s %v", err, body, q.Header)
	}
	if _, err := time.Parse(time.RFC3339Nano, e.Time); err != nil {
		v.Error(err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	code := cmp.Or(v.always, http.StatusOK)
	if len(v.answers) > 0 {
		code, v.answers = v.answers[0], v.answers[1:]
	}
	v.ids = append(v.ids, e.ID)
	isTaken := slices.ContainsFunc(v.events, func(t apply.Event) bool { return t.Sequence == e.Data.Sequence })
	if code == http.StatusOK && !isTaken { // after a kill it may come again
		v.events = append(v.events, e.Data)
	}
	if code < 0 {
		v.mu.Unlock()
		<-q.Context().Done()
		v.mu.Lock()
		return
	}
	w.WriteHeader(code)
	if code == http.StatusConflict {
		fmt.Fprint(w, "not on\nFridays")
	}
}

// idOf returns the id that an event must have; what is asked about has that of a commit.
func idOf(e apply.Event, id string) string {
	if commit := strings.TrimPrefix(id, e.Instance+"/"); e.Type == apply.EventProposed && len(commit) == 40 {
		return e.Instance + "/" + commit
	}
	return fmt.Sprintf("%s/%d", e.Instance, e.Sequence)
}

func (v *receiver) will(codes ...int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.answers = codes
}

// willAlways sets what it answers from now on; 0 for 200, -1 for nothing.
func (v *receiver) willAlways(code int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.always = code
}

// told returns the types of the events that were taken, and the ids of all attempts.
func (v *receiver) told() (types, ids []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, e := range v.events {
		types = append(types, string(e.Type))
	}
	return types, slices.Clone(v.ids)
}

// TestHooks holds that receivers are told what happens, once each, in order, signed; that
// a receiver that is dead, slow or broken delays nobody; and that a kill loses nothing.
func TestHooks(t *testing.T) {
	t.Parallel()
	r := newBareRig(t)
	good, bad, gone := newReceiver(t), newReceiver(t), newReceiver(t)
	end := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-end }))
	t.Cleanup(func() { close(end); slow.Close() })
	secret := filepath.Join(r.dir, "secret")
	ok(t, os.WriteFile(secret, []byte("whsec_"+base64.StdEncoding.EncodeToString(good.secret)+"\n"), 0o600))
	output := filepath.Join(r.dir, "told")
	file := filepath.Join(r.dir, "hooks.yaml")
	ok(t, os.WriteFile(file, fmt.Appendf(nil, `
- {name: good, url: "%s", secret_file: secret}
- {name: bad, url: "%s", secret_file: secret, on: [applied, rolled_back]}
- {name: gone, url: "%s", secret_file: secret}
- {name: slow, url: "%s", timeout: 10m}
- {name: dead, url: "http://127.0.0.1:1/"}
- name: command
  command: [sh, -c, 'cat >>"$1"; echo >>"$1"', hook, %s]
  on: [applied]
`, good.url, bad.url, gone.url, slow.URL, output), 0o600))
	flags := func(cmd *exec.Cmd) {
		cmd.Args = append(cmd.Args, "--hooks", file)
		out, err := os.Create(filepath.Join(r.dir, "state.log"))
		ok(t, err)
		t.Cleanup(func() { _ = out.Close() })
		r.out, cmd.Stderr = out, out
	}
	bad.will(400)
	gone.will(410)
	r.declare(700)
	first := r.embedded(flags)
	r.await("applied", func(v view) bool { return v.State == apply.StateInSync })
	begun := time.Now()
	for n := range 5 {
		r.declare(800 + n)
		r.await("applied", func(v view) bool { return v.InSync && v.size() == 800+n })
	}
	r.order("rollback", "--reason", "it burns")
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("with broken hooks it took %s", took)
	}
	want := []string{"applied", "applied", "applied", "applied", "applied", "applied", "rolled_back"}
	r.until("all is told", func() bool { types, _ := good.told(); return slices.Equal(types, want) })
	r.until("but for what was dropped", func() bool { types, _ := bad.told(); return slices.Equal(types, want[1:]) })
	if _, ids := gone.told(); len(ids) != 1 {
		t.Errorf("one who is gone was told %q", ids)
	}
	r.until("the command has it all", func() bool { text, _ := os.ReadFile(output); return strings.Count(string(text), "\n") == 6 })
	code, out := agent("status", "--state", r.state)
	for _, line := range []string{"good: 7 delivered, 0 wait", "bad: 6 delivered, 0 wait, 1 dropped", "gone: 0 delivered", "off: the receiver responds 410", "dead: 0 delivered, 7 wait; failing since"} {
		if !strings.Contains(out, line) {
			t.Errorf("exit %d, no %q in\n%s", code, line, out)
		}
	}
	if strings.Contains(out, "verysecret") {
		t.Error("the status shows the address")
	}

	good.will(503)
	r.order("pause", "--reason", "night") // is tried again after five seconds, or after a restart
	r.until("an attempt failed", func() bool { _, ids := good.told(); return len(ids) == 8 })
	ok(t, first.Process.Signal(syscall.SIGKILL))
	_ = first.Wait()
	second := r.embedded(flags)
	want = append(want, "paused")
	r.until("the pause is told", func() bool { types, _ := good.told(); return slices.Equal(types, want) })
	_, ids := good.told()
	if len(ids) < 9 || ids[7] != ids[len(ids)-1] {
		t.Errorf("it was told as %q", ids)
	}

	ok(t, os.WriteFile(file, fmt.Appendf(nil, "- {name: gone, url: \"%s\", secret_file: secret}\n", gone.url), 0o600))
	ok(t, second.Process.Signal(syscall.SIGHUP))
	r.until("it is switched on again", func() bool {
		_, out := agent("status", "--state", r.state)
		return strings.Contains(out, "gone: 0 delivered, 0 wait\n")
	})
	r.until("that is logged", func() bool { return r.logged("hooks read again", "hooks=gone") == 1 })
	if r.logged("hook requests are not signed", "hooks=slow,dead") != 1 {
		t.Errorf("it is not said whose requests are not signed:\n%s", r.evidence())
	}
	r.order("resume")
	r.until("and told what happens", func() bool { types, _ := gone.told(); return slices.Contains(types, "resumed") })
	ok(t, os.WriteFile(file, []byte("- {name: gone}\n"), 0o600))
	ok(t, second.Process.Signal(syscall.SIGHUP))
	r.order("pause", "--reason", "night")
	r.until("a bad file changes nothing", func() bool { types, _ := gone.told(); return slices.Contains(types, "paused") })
	mistake := file + ":1: hook gone: it needs a url or a command, and not both; what was read before is in force"
	if _, out := agent("status", "--state", r.state); !strings.Contains(out, "\nhooks      read hooks "+mistake) {
		t.Errorf("the status does not say what is wrong with the file:\n%s", out)
	}
	if _, page := get(t, "http://127.0.0.1:"+r.port+"/", "text/html"); !strings.Contains(page, `<h2 id="hooks">Hooks</h2>`) || !strings.Contains(page, mistake) || !strings.Contains(page, "<li>gone: ") {
		t.Errorf("nor the page:\n%s", page)
	}
	var status struct {
		Status struct {
			HookErrors          []string `json:"hook_errors"`
			RegisteredCallbacks int      `json:"registered_callbacks"`
			Hooks               []struct{ Name string }
		}
	}
	_, text := get(t, "http://127.0.0.1:"+r.port+"/v1/config/status", "*/*")
	ok(t, json.Unmarshal([]byte(text), &status))
	if len(status.Status.HookErrors) != 1 || status.Status.RegisteredCallbacks != 1 || len(status.Status.Hooks) != 1 || status.Status.Hooks[0].Name != "gone" {
		t.Errorf("%+v", status)
	}
}

// TestRequiredHooks holds that a change is applied only once the required hooks agree: a
// veto rejects it, without an answer it is taken back and tried again, and a killed agent
// asks again about the same record. Rollbacks are not asked about.
func TestRequiredHooks(t *testing.T) {
	t.Parallel()
	r := newBareRig(t)
	policy, chat := newReceiver(t), newReceiver(t)
	ok(t, os.WriteFile(filepath.Join(r.dir, "secret"), []byte("whsec_"+base64.StdEncoding.EncodeToString(policy.secret)+"\n"), 0o600))
	file := filepath.Join(r.dir, "hooks.yaml")
	ok(t, os.WriteFile(file, fmt.Appendf(nil, `
- {name: policy, url: "%s", secret_file: secret, required: true, timeout: 3s}
- {name: chat, url: "%s", secret_file: secret, on: [rejected, reverted, rolled_back]}
`, policy.url, chat.url), 0o600))
	flags := func(cmd *exec.Cmd) { cmd.Args = append(cmd.Args, "--hooks", file) }
	begun := func(size int) {
		_, before := policy.told()
		r.declare(size)
		r.await("it is asked about", func(v view) bool { return v.State == apply.StateProbation && v.size() == size })
		r.until("the receiver has it", func() bool { _, ids := policy.told(); return len(ids) > len(before) })
	}

	r.declare(700)
	first := r.embedded(flags)
	v := r.await("agreed", func(v view) bool { return v.InSync && v.size() == 700 })
	_, ids := policy.told()
	if len(ids) != 1 || !strings.HasSuffix(ids[0], "/"+v.Running.Revision) || policy.events[0].Type != apply.EventProposed || len(policy.events[0].Changes) == 0 || policy.events[0].Record != v.Running.SnapshotID {
		t.Errorf("asked as %q about %+v; applied is %+v", ids, policy.events, v.Running)
	}

	policy.will(http.StatusConflict)
	r.declare(800)
	v = r.await("rejected", func(v view) bool { return v.State == apply.StateHeld && v.size() == 700 })
	if h := v.Held; h.By != "hook" || len(h.Entries) != 1 || !strings.HasSuffix(h.Reason, `hook policy rejected it: the receiver responds 409 Conflict ("not on Fridays")`) || v.Attempted.Outcome != record.Rejected {
		t.Errorf("held %+v, attempted %+v", h, v.Attempted)
	}
	r.wantMetric(`dtesn_agent_rollbacks_total{cause="hook"}`, 1)
	r.wantMetric(`dtesn_agent_held{cause="hook"}`, 1)
	r.until("others are told", func() bool { types, _ := chat.told(); return slices.Equal(types, []string{"rejected", "reverted"}) })
	for _, e := range chat.events {
		if e.Cause != "hook" {
			t.Errorf("told %+v", e)
		}
	}

	policy.willAlways(http.StatusServiceUnavailable)
	r.declare(900)
	v = r.await("taken back", func(v view) bool { return v.State == apply.StateDegraded && v.size() == 700 })
	if !strings.Contains(v.Reason, "hook policy gave no verdict within 3s; last: the receiver responds 503") || v.Attempted.Outcome != record.Superseded || !v.Ready || v.Held == nil || len(v.Held.Entries) != 1 {
		t.Errorf("%s: %s; attempted %+v, held %+v, ready %v", v.State, v.Reason, v.Attempted, v.Held, v.Ready)
	}
	if _, out := agent("status", "--state", r.state); !strings.Contains(out, "required; last: no verdict on snapshot_") {
		t.Errorf("the status says\n%s", out)
	}
	r.until("others are told, once", func() bool {
		types, _ := chat.told()
		return slices.Equal(types, []string{"rejected", "reverted", "reverted"})
	})
	if e := chat.events[2]; e.Cause != "hook" || e.Outcome != record.Superseded || len(e.Changes) != 1 || !strings.HasPrefix(e.Reason, "taken back, because") {
		t.Errorf("told %+v", e)
	}
	r.wantMetric("dtesn_agent_last_apply_successful", 0)
	r.wantMetric(`dtesn_agent_hook_failing{hook="policy"}`, 1)
	policy.willAlways(0)
	r.order("sync")
	r.await("tried again", func(v view) bool { return v.InSync && v.size() == 900 && v.Held == nil })

	r.wantMetric("dtesn_agent_last_apply_successful", 1)
	r.wantMetric(`dtesn_agent_hook_failing{hook="policy"}`, 0)
	_, out := agent("audit", "--state", r.state, "--json", "--type", "applied")
	if _, status := agent("status", "--state", r.state); !strings.Contains(status, "required; last: agreed to snapshot_") || !strings.Contains(out, `"agreed":["policy"]`) {
		t.Errorf("the status says\n%s\nand the events\n%s", status, out)
	}

	policy.willAlways(-1)
	begun(1000)
	if _, out := agent("status", "--state", r.state); !strings.Contains(out, "policy: ") || !strings.Contains(out, ", asked about snapshot_") || !strings.Contains(out, "once the required hooks agree (policy)") {
		t.Errorf("the status says\n%s", out)
	}
	asked := r.snapshots()[0].ID
	ok(t, first.Process.Signal(syscall.SIGKILL))
	_ = first.Wait()
	policy.willAlways(0)
	second := r.embedded(flags)
	v = r.await("asked again", func(v view) bool { return v.InSync && v.size() == 1000 })
	if _, ids = policy.told(); v.Running.SnapshotID != asked || ids[len(ids)-1] != ids[len(ids)-2] || !strings.HasSuffix(ids[len(ids)-1], "/"+v.Running.Revision) {
		t.Errorf("applied is %+v, asked was %q", v.Running, ids)
	}

	policy.willAlways(-1)
	begun(1100)
	r.order("rollback", "--reason", "it burns")
	v = r.await("rolled back", func(v view) bool { return v.State == apply.StateHeld && v.size() == 1000 && v.Running.Confirmed })
	if _, ids = policy.told(); slices.ContainsFunc(ids, func(id string) bool { return strings.HasSuffix(id, "/"+v.Running.Revision) }) {
		t.Errorf("asked about a rollback: %q", ids)
	}
	begun(1200)
	policy.willAlways(0)
	r.declare(1300)
	r.await("a newer one takes its place", func(v view) bool { return v.InSync && v.size() == 1300 })

	output := filepath.Join(r.dir, "asked")
	ok(t, os.WriteFile(file, fmt.Appendf(nil, "- {name: local, command: [sh, -c, 'cat >%s; echo too big; exit 1'], required: true}\n", output), 0o600))
	ok(t, second.Process.Signal(syscall.SIGHUP))
	r.until("the file was read again", func() bool { _, out := agent("status", "--state", r.state); return strings.Contains(out, "local: ") })
	r.declare(1400)
	v = r.await("rejected by a command", func(v view) bool { return v.State == apply.StateHeld && v.size() == 1300 })
	if !strings.HasSuffix(v.Held.Reason, `hook local rejected it: exit status 1 ("too big")`) {
		t.Errorf("held %+v", v.Held)
	}
	if text, err := os.ReadFile(output); err != nil || !strings.Contains(string(text), `"type":"dev.dtesn.proposed"`) {
		t.Errorf("the command was given %s, %v", text, err)
	}
}

// TestOnceTellsHooks holds that a job ends once hooks were told what came of it.
func TestOnceTellsHooks(t *testing.T) {
	r := newBareRig(t)
	output, file := filepath.Join(r.dir, "told"), filepath.Join(r.dir, "hooks.yaml")
	ok(t, os.WriteFile(file, fmt.Appendf(nil, "- {name: good, command: [sh, -c, 'cat >>%s; echo >>%s'], on: [applied]}\n- {name: dead, url: 'http://127.0.0.1:1'}\n", output, output), 0o600))
	run := func(flags ...string) (int, string) {
		return agent(append([]string{"run", "--once", "--environment", "production", "--config", r.config, "--embedded-engine", "--state", r.state, "--listen", "127.0.0.1:0", "--hooks", file}, flags...)...)
	}
	for n := 1; n <= 3; n++ {
		r.declare(700 + n)
		code, out := run()
		text, err := os.ReadFile(output)
		if code != 0 || err != nil || strings.Count(string(text), "specversion") != n {
			t.Fatalf("job %d: exit %d, told %s, %v\n%s", n, code, text, err, out)
		}
	}
	ok(t, os.WriteFile(file, []byte("- {name: policy, command: [sleep, '9'], required: true, timeout: 5s}\n"), 0o600))
	if code, out := run("--once-timeout", "5s"); code != 2 || !strings.Contains(out, "--once-timeout: 5s leaves no time for the required hook policy, whose timeout is 5s") {
		t.Errorf("exit %d\n%s", code, out)
	}
}

// TestOnceWithRequiredHooks holds that a job ends by what required hooks say.
func TestOnceWithRequiredHooks(t *testing.T) {
	t.Parallel()
	for script, want := range map[string]struct {
		code int
		text string
	}{
		"exit 0":                {0, ""},
		"echo too big; exit 1":  {4, `hook policy rejected it: exit status 1 ("too big")`},
		"echo busy >&2; exit 2": {1, `no outcome within 5s (--once-timeout): degraded: snapshot_`},
	} {
		t.Run(script, func(t *testing.T) {
			r := newBareRig(t)
			r.declare(700)
			file := filepath.Join(r.dir, "hooks.yaml")
			ok(t, os.WriteFile(file, fmt.Appendf(nil, "- {name: policy, command: [sh, -c, '%s'], required: true, timeout: 1s}\n", script), 0o600))
			code, out := agent("run", "--once", "--once-timeout", "5s", "--environment", "production", "--config", r.config, "--embedded-engine", "--state", r.state, "--listen", "127.0.0.1:0", "--hooks", file)
			if code != want.code || !strings.Contains(out, want.text) {
				t.Errorf("exit %d, want %d and %q in\n%s", code, want.code, want.text, out)
			}
		})
	}
}
