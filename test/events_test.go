package test

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/cmd/agent/cli"
)

// A listener is a stream of events of an agent.
type listener struct {
	resp  *http.Response
	lines *bufio.Scanner
}

func (r *rig) listen(last string) (*listener, error) {
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute) // the whole of the stream
	r.t.Cleanup(cancel)
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:"+r.port+"/v1/config/events", nil)
	ok(r.t, err)
	if last != "" {
		q.Header.Set("Last-Event-ID", last)
	}
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		return nil, err
	}
	r.t.Cleanup(func() { _ = resp.Body.Close() })
	return &listener{resp, bufio.NewScanner(resp.Body)}, nil
}

// next returns the next event, with its id and its type as the stream has them.
func (l *listener) next(t *testing.T) (id string, e apply.Event) {
	t.Helper()
	kind := ""
	for l.lines.Scan() {
		switch name, value, _ := strings.Cut(l.lines.Text(), ": "); name {
		case "id":
			id = value
		case "event":
			kind = value
		case "data":
			ok(t, json.Unmarshal([]byte(value), &e))
			if kind != string(e.Type) || id != strconv.FormatInt(e.Sequence, 10) {
				t.Errorf("the stream says %s %s of %+v", id, kind, e)
			}
			return id, e
		}
	}
	t.Fatalf("the stream ended: %v", l.lines.Err())
	return
}

// TestEvents holds that what happens is told once, in order, under numbers that a restart
// does not change, with who did it and why.
func TestEvents(t *testing.T) {
	t.Parallel()
	r := newBareRig(t)
	r.declare(700)
	first := r.embedded(nil)
	r.await("applied", func(v view) bool { return v.State == apply.StateInSync })
	l, err := r.listen("0")
	ok(t, err)
	seen := []string{}
	take := func(l *listener, kinds ...apply.EventType) (last apply.Event) {
		t.Helper()
		for _, kind := range kinds {
			id, e := l.next(t)
			seen = append(seen, id)
			if e.Type != kind || e.Environment != "production" || e.Instance == "" || e.At == 0 {
				t.Errorf("got %+v, want %s", e, kind)
			}
			last = e
		}
		return last
	}
	if e := take(l, apply.EventApplied); len(e.Changes) != 1 || e.Changes[0].Parameter != sizeName || e.Changes[0].Apply != "rebuild" || e.Outcome != "applied" || e.Record == "" {
		t.Errorf("%+v", e)
	}
	r.declare(800)
	take(l, apply.EventApplied)
	r.order("rollback", "--reason", "it burns")
	if e := take(l, apply.EventRolledBack); e.Cause != "operator" || !strings.Contains(e.Reason, "it burns") || e.By == nil {
		t.Errorf("%+v", e)
	}
	if _, out := agent("status", "--state", r.state); !strings.Contains(out, "what is seen: applied, and then rolled back from") {
		t.Errorf("the status says\n%s", out)
	}
	r.write("production.yaml", "environment: production\nparameters: # another revision\n  "+sizeName+": 800\n")
	if e := take(l, apply.EventHeld); e.Cause != "operator" || !strings.Contains(e.Reason, "it burns") || e.Revision == "" {
		t.Errorf("%+v", e)
	}
	r.order("pause", "--reason", "night")
	if e := take(l, apply.EventPaused); e.By == nil || e.By.UID != os.Getuid() || e.Reason != "night" || len(e.Changes) != 0 {
		t.Errorf("%+v", e)
	}
	r.write("production.yaml", "environment: production\nparameters:\n  "+sizeName+": many\n")
	if e := take(l, apply.EventInvalid); !strings.Contains(e.Reason, "production.yaml:3:") || e.Revision == "" {
		t.Errorf("%+v", e)
	}
	ok(t, first.Process.Signal(syscall.SIGKILL))
	_ = first.Wait()
	r.embedded(nil)
	r.await("paused", func(v view) bool { return v.Held != nil && v.Held.Paused && v.Engine.Reachable })
	r.order("resume", "--reason", "day")
	again, err := r.listen(seen[2])
	ok(t, err)
	if id, e := again.next(t); id != seen[3] || e.Type != apply.EventHeld {
		t.Errorf("resumed behind %s it goes on with %s %s", seen[2], id, e.Type)
	}
	for since, next := range map[string]string{seen[1]: seen[2], "9999999999999": seen[0], "x": "", "-1": ""} {
		resp, err := http.Get("http://127.0.0.1:" + r.port + "/v1/config/events?since=" + since)
		ok(t, err)
		if want := map[bool]int{true: http.StatusBadRequest, false: http.StatusOK}[next == ""]; resp.StatusCode != want {
			t.Errorf("since %s: %s", since, resp.Status)
		} else if next != "" {
			if id, _ := (&listener{resp, bufio.NewScanner(resp.Body)}).next(t); id != next {
				t.Errorf("since %s it goes on with %s", since, id)
			}
		}
		ok(t, resp.Body.Close())
	}
	var resumed apply.Event
	for resumed.Type != apply.EventResumed {
		_, resumed = again.next(t)
	}
	if len(resumed.Released) != 2 || resumed.Released[0].Reason != "night" || resumed.Released[1].String() != sizeName+" 800" {
		t.Errorf("%+v", resumed)
	}

	code, out := agent("audit", "--state", r.state, "--type", "paused,rolled_back,applied")
	for _, want := range []string{"WHEN", "rolled_back", "it burns", "(uid " + strconv.Itoa(os.Getuid()), "night", sizeName + " 700 -> 800"} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("audit: exit %d, no %q in\n%s", code, want, out)
		}
	}
	if code, out := agent("audit", "--state", r.state, "--json"); code != 0 || strings.Count(out, "\n") < 7 || json.Unmarshal([]byte(strings.SplitN(out, "\n", 2)[0]), &apply.Event{}) != nil {
		t.Errorf("exit %d: %s", code, out)
	}
	if code, out := agent("audit", "--state", r.state, "--since", "1ns"); code != 0 || !strings.Contains(out, "no such event") {
		t.Errorf("exit %d: %s", code, out)
	}
	if code, out := agent("audit", "--state", r.state, "--since", "1d"); code != 0 || !strings.Contains(out, "resumed") {
		t.Errorf("exit %d: %s", code, out)
	}
	if code, out := agent("audit", "--state", r.state, "--verify", "--json"); code != 2 || out != "agent: --verify and --json cannot be combined\n" {
		t.Errorf("exit %d: %s", code, out)
	}
	if code, out := agent("audit", "--state", r.state, "--type", "x"); code != 2 || !strings.Contains(out, "rolled_back") {
		t.Errorf("exit %d: %s", code, out)
	}
	if code, out := agent("audit", "--state", r.state, "--verify"); code != 0 || !strings.Contains(out, "records verified") {
		t.Errorf("exit %d: %s", code, out)
	}
}

// TestAuditFindsDamage holds that a record whose content was changed is found.
func TestAuditFindsDamage(t *testing.T) {
	t.Parallel()
	r := newBareRig(t)
	r.records(100)
	path := filepath.Join(r.state, "snapshots.git", "objects", "pack")
	packs, err := filepath.Glob(filepath.Join(path, "*.pack"))
	ok(t, err)
	if len(packs) == 0 {
		t.Fatal("no pack")
	}
	size := func(path string) int64 { info, err := os.Stat(path); ok(t, err); return info.Size() }
	slices.SortFunc(packs, func(a, b string) int { return cmp.Compare(size(b), size(a)) }) // the journal has no record of the largest
	text, err := os.ReadFile(packs[0])
	ok(t, err)
	ok(t, os.Chmod(packs[0], 0o600))
	for i := range 1000 { // of an object some bytes are not needed to read it
		text[len(text)/2+i] ^= 0xff
	}
	ok(t, os.WriteFile(packs[0], text, 0o600))
	if code, out := agent("audit", "--state", r.state, "--verify"); code != 1 || !strings.Contains(out, "see Damaged history in docs/history.md") {
		t.Errorf("exit %d: %s", code, out)
	}
}

// TestManyListeners holds that streams are bounded, and take nothing from others.
func TestManyListeners(t *testing.T) {
	t.Parallel()
	b := newBesieged(t, 0)
	var listeners []*listener
	refused := 0
	for range 70 {
		l, err := b.listen("0")
		ok(t, err)
		if l.resp.StatusCode == http.StatusOK {
			listeners = append(listeners, l)
		} else if refused++; l.resp.StatusCode != http.StatusServiceUnavailable || l.resp.Header.Get("Retry-After") == "" {
			t.Errorf("%s", l.resp.Status)
		}
	}
	if len(listeners) != 64 || refused != 6 {
		t.Errorf("%d listen, %d are refused", len(listeners), refused)
	}
	b.works(800)
	b.clients(200, "tcp", "127.0.0.1:"+b.port, "")
	b.works(900)
	for _, l := range listeners {
		for size := 0; size != 900; {
			_, e := l.next(t)
			for _, c := range e.Changes {
				if n, ok := c.New.Int(); ok && c.Parameter == sizeName && e.Type == apply.EventApplied {
					size = n
				}
			}
		}
	}
	_ = listeners[0].resp.Body.Close()
	b.until("a place is free again", func() bool {
		l, err := b.listen("0")
		return err == nil && l.resp.StatusCode == http.StatusOK
	})
	begun := time.Now()
	ok(t, b.running.Process.Signal(syscall.SIGTERM))
	_ = b.running.Wait()
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("with listeners it took %s to end", took)
	}
}

// TestWatch holds that status --watch prints each change, also over a restart.
func TestWatch(t *testing.T) {
	t.Parallel()
	r := newBareRig(t)
	r.declare(700)
	first := r.embedded(nil)
	r.await("applied", func(v view) bool { return v.State == apply.StateInSync })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out lockedBuffer
	done := make(chan int)
	go func() { done <- cli.Run(ctx, []string{"status", "--watch", "--state", r.state}, &out, &out) }()
	says := func(what string) {
		t.Helper()
		r.until(fmt.Sprintf("it says %q", what), func() bool { return strings.Contains(out.String(), what) })
	}
	says("state      in_sync")
	r.order("pause", "--reason", "night")
	says("paused     by operator")
	ok(t, first.Process.Signal(syscall.SIGKILL))
	_ = first.Wait()
	says("no agent runs on")
	r.embedded(nil)
	r.until("it says it again", func() bool { return strings.Count(out.String(), "paused     by operator") >= 2 })
	cancel()
	if code := <-done; code != 0 {
		t.Errorf("interrupted it exits with %d", code)
	}
}
