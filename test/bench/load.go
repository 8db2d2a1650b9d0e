package main

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// What is loaded on the agent: as many listeners as it takes, and pollers as dashboards
// are, each of which asks once a second over a connection of its own.
const (
	listeners = 64
	pollers   = 200
	pollEvery = time.Second
	rounds    = 3
)

// A burden is something beside the agent that must not delay a change.
type burden struct {
	name, budget string
	begin        func() (end func() error, err error)
}

// governed begins the agent again with the example's policy, and ends with one without.
func (b *bed) governed(hooks string) func() (func() error, error) {
	return func() (func() error, error) {
		b.stop()
		end := func() error { b.stop(); return b.start("--hooks", hooks) }
		if err := b.start("--hooks", hooks, "--policy", "examples/policy"); err != nil {
			return nil, err
		}
		_, _, _, err := b.change(false) // loaded
		return end, err
	}
}

// loadRows measures a change with each burden beside one without, in turns: three rounds
// each, of whose ratios the median counts. The bench waits for lines of the agent's log;
// nothing but the pollers polls.
func (b *bed) loadRows(runs int) error {
	b.stop() // without hooks
	file := filepath.Join(b.dir, "hooks.yaml")
	if err := os.WriteFile(file, []byte("[]\n"), 0o600); err != nil {
		return err
	}
	if err := b.start("--hooks", file); err != nil {
		return err
	}
	receivers, end := newReceivers()
	defer end()
	hook := func(url string) func() (func() error, error) {
		return func() (func() error, error) { // under a new name, for the one of a round before may wait for minutes
			return func() error { return b.setHooks(file, "", "") }, b.setHooks(file, fmt.Sprintf("h%d", b.n), url)
		}
	}
	burdens := []burden{
		{fmt.Sprintf("%d listeners, %d pollers", listeners, pollers), "1.30 to without", b.crowd},
		{"a dead hook", "1.05 to without", hook("http://127.0.0.1:1/")},
		{"a slow hook (5 s)", "1.05 to without", hook(receivers + "/slow")},
		{"a hook that says 500", "1.05 to without", hook(receivers + "/fails")},
		{"a hook that answers endlessly", "1.05 to without", hook(receivers + "/endless")},
		{"a policy", "+2.5 ms", b.governed(file)},
	}
	all := make([]row, len(burdens))
	for range rounds {
		for i, burden := range burdens {
			r := &all[i]
			r.name, r.budget = "rename to applied, "+burden.name, burden.budget
			without, cpuWithout, err := b.changes(runs)
			if err != nil {
				return err
			}
			end, err := burden.begin()
			if err != nil {
				return fmt.Errorf("%s: %w", burden.name, err)
			}
			with, cpu, err := b.changes(runs)
			held, herr := b.held()
			if err := errors.Join(err, herr, end()); err != nil {
				return fmt.Errorf("%s: %w", burden.name, err)
			}
			r.ours, r.floor = append(r.ours, with...), append(r.floor, without...)
			r.ratios = append(r.ratios, float64(quantile(with, 0.5))/float64(quantile(without, 0.5)))
			r.held = fmt.Sprintf("CPU a change %s, without %s, %s", ms(cpu), ms(cpuWithout), held)
		}
	}
	for _, r := range all {
		show(r, row{name: "  the last round", note: r.held})
	}
	return nil
}

// changes makes so many changes, and returns how long each took from the rename until it
// was applied; some more go before, so that what was begun has settled.
func (b *bed) changes(runs int) (took []time.Duration, cpu time.Duration, err error) {
	for i := range runs + runs/10 {
		if i == runs/10 {
			cpu = -b.spent()
		}
		renamed, _, applied, err := b.change(false)
		if err != nil {
			return nil, 0, err
		}
		if i >= runs/10 {
			took = append(took, applied.Sub(renamed))
		}
	}
	return took, (cpu + b.spent()) / time.Duration(runs), nil
}

// setHooks gives the agent one hook, or none if name is empty, and waits until it has it.
func (b *bed) setHooks(file, name, url string) error {
	text := ""
	if name != "" {
		text = fmt.Sprintf("- {name: %s, url: %q}\n", name, url)
	}
	if err := os.WriteFile(file, []byte(cmp.Or(text, "[]\n")), 0o600); err != nil {
		return err
	}
	if err := b.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		var s struct {
			Status struct {
				Hooks []struct{ Name string }
			}
		}
		if err := b.getJSON("/v1/config/status", &s); err != nil {
			return err
		}
		has := ""
		for _, h := range s.Status.Hooks {
			has = h.Name
		}
		if has == name {
			return nil
		}
	}
	return errors.New("the agent did not take the hooks within 10 s")
}

// newReceivers serves hooks that do not behave.
func newReceivers() (url string, end func()) {
	over := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, q *http.Request) {
		select {
		case <-time.After(5 * time.Second):
		case <-q.Context().Done():
		case <-over:
		}
	})
	mux.HandleFunc("/fails", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	mux.HandleFunc("/endless", func(w http.ResponseWriter, _ *http.Request) {
		for line := bytes.Repeat([]byte("x"), 32<<10); ; {
			if _, err := w.Write(line); err != nil {
				return
			}
		}
	})
	s := httptest.NewServer(mux)
	return s.URL, func() { close(over); s.Close() }
}

// crowd starts the listeners and the pollers, as a process of its own that has the
// processor when nobody else wants it: theirs are other machines.
func (b *bed) crowd() (end func() error, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("nice", "-n", "19", self, "-crowd", strings.TrimPrefix(b.url, "http://"))
	cmd.Stderr = os.Stderr
	stop, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	said := bufio.NewScanner(out)
	before := b.n
	if !said.Scan() {
		return nil, errors.Join(errors.New("the listeners are not there"), cmd.Wait())
	}
	return func() error {
		time.Sleep(time.Second) // for the last events, and a round of polls
		_ = stop.Close()
		var events, polls, failed int64
		if !said.Scan() {
			return errors.Join(errors.New("the listeners said nothing"), cmd.Wait())
		}
		if _, err := fmt.Sscan(said.Text(), &events, &polls, &failed); err != nil {
			return err
		}
		if want := int64(b.n - before); events < want || polls < pollers || failed > polls/20 {
			return fmt.Errorf("a listener heard %d events, %d were to be; %d polls, %d failed", events, want, polls, failed)
		}
		return cmd.Wait()
	}, nil
}

// runCrowd listens and polls until standard input ends, and then prints how many events
// each heard at least, and how many polls were answered and failed.
func runCrowd(address string) error {
	var events [listeners]atomic.Int64
	var polls, failed atomic.Int64
	var ready sync.WaitGroup
	problems := make(chan error, listeners)
	for i := range listeners {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(conn, "GET /v1/config/events HTTP/1.1\r\nHost: %s\r\n\r\n", address); err != nil {
			return err
		}
		ready.Add(1)
		go func() {
			lines, isReady := bufio.NewScanner(conn), false
			for lines.Scan() {
				switch text := lines.Text(); {
				case !isReady && strings.HasPrefix(text, "retry:"):
					isReady = true
					ready.Done()
				case strings.HasPrefix(text, "id:"):
					events[i].Add(1)
				}
			}
			problems <- fmt.Errorf("a stream ended: %w", lines.Err())
		}()
	}
	go func() { ready.Wait(); fmt.Println("ready") }()
	over := make(chan struct{})
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); close(over) }()
	client := http.Client{Timeout: pollEvery, Transport: &http.Transport{DisableKeepAlives: true}}
	turns := time.NewTicker(pollEvery / pollers)
	defer turns.Stop()
	for {
		select {
		case <-turns.C: // of one poller after another
			go func() {
				resp, err := client.Get("http://" + address + "/v1/config/status")
				if err == nil {
					drain(resp)
				}
				if err != nil || resp.StatusCode != http.StatusOK {
					failed.Add(1)
				}
				polls.Add(1)
			}()
		case err := <-problems:
			return err
		case <-over:
			least := events[0].Load()
			for i := range events {
				least = min(least, events[i].Load())
			}
			fmt.Println(least, polls.Load(), failed.Load())
			return nil
		}
	}
}
