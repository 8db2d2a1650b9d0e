package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"dtesn-agent/cmd/agent/cli"
	"dtesn-agent/schema"
)

// TestMain lets this binary be the command "agent", so that tests run the real
// program as processes that can be killed, with the race detector if the test
// has it. Tests that start an embedded engine run shippedAgent instead.
func TestMain(m *testing.M) {
	if os.Getenv("GORACE") == "" {
		// else each agent that ends sleeps for a second, for races of its last moment
		_ = os.Setenv("GORACE", "atexit_sleep_ms=20")
	}
	testscript.Main(cleaned{m}, map[string]func(){"agent": func() { os.Exit(cli.Main()) }})
}

// cleaned runs the tests and removes what they built for all of them.
type cleaned struct{ *testing.M }

func (c cleaned) Run() int {
	defer removeShipped()
	return c.M.Run()
}

// racedStories run the agent with the race detector. The others are about what
// one command prints, or start an embedded engine again and again: with it, all
// of them took seven times as much of the processor.
var racedStories = []string{"faults", "tour"}

// TestStories runs stories/*.txt. Besides testscript's own commands there are
//
//	await [METHOD] URL PATH VALUE     until the JSON at URL says VALUE at PATH
//	expect [METHOD] URL PATH VALUE    the same, at once
//	code STATUS [METHOD] URL          the HTTP status, and the answer as stdout
//	edit FILE from to                 replaces text and renames the file into place
//
// A URL that begins with unix:SOCKET: is asked over a Unix socket. Each story
// has $PORT and $URL for its agent. A base.yaml that begins with "parameters:" is
// completed by the defaults of what it does not set.
func TestStories(t *testing.T) {
	shipped := shippedAgent(t)
	testscript.Run(t, testscript.Params{
		Dir: "stories",
		Setup: func(env *testscript.Env) error {
			port, err := freePort()
			env.Setenv("PORT", port)
			env.Setenv("URL", "http://127.0.0.1:"+port)
			env.Setenv("S", "http://127.0.0.1:"+port+"/v1/config/status")
			env.Setenv("GIT_CONFIG_GLOBAL", os.DevNull)
			env.Setenv("GORACE", os.Getenv("GORACE"))
			if story := strings.TrimPrefix(filepath.Base(env.WorkDir), "script-"); !slices.Contains(racedStories, story) {
				env.Setenv("PATH", filepath.Dir(shipped)+string(filepath.ListSeparator)+env.Getenv("PATH"))
			}
			return errors.Join(err, completeBases(env.WorkDir))
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"await": await, "expect": expect, "code": httpCode, "edit": edit,
		},
	})
}

// completeBases adds to each base.yaml of a story the default of every required
// parameter that it does not set, so that a parameter more touches no story.
func completeBases(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != schema.BaseFile {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil || !bytes.HasPrefix(text, []byte("parameters:\n")) {
			return err
		}
		defaults := production.Defaults()
		missing := defaults.Select(func(name string) bool {
			return production.Parameter(name).Required && !bytes.Contains(text, []byte("\n  "+name+":"))
		})
		return os.WriteFile(path, append(text, indent(missing)...), 0o644)
	})
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port), nil
}

// fetch asks url, over a Unix socket for unix:PATH:/path.
func fetch(ts *testscript.TestScript, method, url string) (int, []byte, error) {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	if rest, ok := strings.CutPrefix(url, "unix:"); ok {
		socket, path, _ := strings.Cut(rest, ":")
		socket = ts.MkAbs(socket)
		url = "http://engine" + path
		client.Transport = &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}}
	}
	q, err := http.NewRequestWithContext(context.Background(), method, url, http.NoBody)
	if err != nil {
		return 0, nil, err
	}
	resp, err := client.Do(q)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	var body strings.Builder
	buf := make([]byte, 32<<10)
	for {
		n, err := resp.Body.Read(buf)
		body.Write(buf[:n])
		if err != nil {
			break
		}
	}
	return resp.StatusCode, []byte(body.String()), nil
}

// at finds the value at a path such as .status.attempts.0.outcome.
func at(text []byte, path string) (string, error) {
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		return "", fmt.Errorf("%w in %.200q", err, text)
	}
	for key := range strings.SplitSeq(strings.TrimPrefix(path, "."), ".") {
		switch x := v.(type) {
		case map[string]any:
			value, ok := x[key]
			if !ok {
				return "", fmt.Errorf("no %s in %s", key, path)
			}
			v = value
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i >= len(x) {
				return "", fmt.Errorf("no %s in %s", key, path)
			}
			v = x[i]
		default:
			return "", fmt.Errorf("no %s in %s", key, path)
		}
	}
	if s, ok := v.(string); ok {
		return s, nil
	}
	out, err := json.Marshal(v)
	return string(out), err
}

func holds(ts *testscript.TestScript, neg bool, args []string) error {
	method := http.MethodGet
	if len(args) == 4 {
		method, args = args[0], args[1:]
	}
	if len(args) != 3 {
		ts.Fatalf("usage: [METHOD] URL PATH VALUE")
	}
	_, body, err := fetch(ts, method, args[0])
	if err != nil {
		return err
	}
	got, err := at(body, args[1])
	if err != nil {
		return err
	}
	if (got == args[2]) == neg {
		return fmt.Errorf("%s %s is %s", args[0], args[1], got)
	}
	return nil
}

func await(ts *testscript.TestScript, neg bool, args []string) {
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		err := holds(ts, neg, args)
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			ts.Fatalf("await %s: still not: %v", strings.Join(args, " "), err)
		case <-again.C:
		}
	}
}

func expect(ts *testscript.TestScript, neg bool, args []string) {
	if err := holds(ts, neg, args); err != nil {
		ts.Fatalf("%v", err)
	}
}

func httpCode(ts *testscript.TestScript, neg bool, args []string) {
	method := http.MethodGet
	if len(args) == 3 {
		method = args[1]
	}
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code STATUS [METHOD] URL")
	}
	code, body, err := fetch(ts, method, args[len(args)-1])
	ts.Check(err)
	fmt.Fprintf(ts.Stdout(), "%s", body)
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("%s %s answers %d", method, args[len(args)-1], code)
	}
}

func edit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: edit FILE FROM TO")
	}
	file := ts.MkAbs(args[0])
	text, err := os.ReadFile(file)
	ts.Check(err)
	if !strings.Contains(string(text), args[1]) {
		ts.Fatalf("%s does not contain %q", args[0], args[1])
	}
	beside := filepath.Join(filepath.Dir(file), ".edit")
	ts.Check(os.WriteFile(beside, []byte(strings.Replace(string(text), args[1], args[2], 1)), 0o644))
	ts.Check(os.Rename(beside, file))
}
