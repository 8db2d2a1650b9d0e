//go:build linux

package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"dtesn-agent/apply"
	"dtesn-agent/cmd/agent/events"
)

// A receiver is a hook that survives the agent and is told what happens. It takes all,
// and notes what contradicts what it was told before.
type receiver struct {
	server *http.Server
	file   string // for --hooks

	mu     sync.Mutex
	bodies map[string][sha256.Size]byte // by id
	ids    map[string]string            // by key of what a record is evidence of
	last   int64                        // the newest sequence number
	wrong  error
}

func newReceiver(dir string) (*receiver, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	v := &receiver{file: filepath.Join(dir, "hooks.yaml"), bodies: map[string][sha256.Size]byte{}, ids: map[string]string{}}
	v.server = &http.Server{Handler: v}
	go func() { _ = v.server.Serve(listener) }()
	return v, os.WriteFile(v.file, fmt.Appendf(nil, "- {name: crash, url: \"http://%s/\"}\n", listener.Addr()), 0o600)
}

func (v *receiver) ServeHTTP(_ http.ResponseWriter, q *http.Request) {
	body, err := io.ReadAll(q.Body)
	if err != nil {
		return // the agent was killed meanwhile
	}
	var e struct {
		ID   string
		Data apply.Event
	}
	err = json.Unmarshal(body, &e)
	v.mu.Lock()
	defer v.mu.Unlock()
	sum := sha256.Sum256(body)
	before, isKnown := v.bodies[e.ID]
	switch {
	case err != nil || e.ID != fmt.Sprintf("%s/%d", instance, e.Data.Sequence):
		err = fmt.Errorf("an event cannot be understood: %w: %s", err, body)
	case isKnown && before != sum:
		err = fmt.Errorf("%s was told before, and otherwise: %s", e.ID, body)
	case !isKnown && e.Data.Sequence <= v.last:
		err = fmt.Errorf("%s is told after %d: %s", e.ID, v.last, body)
	}
	if key := keyOf(&e.Data); key != "" {
		if id := v.ids[key]; id != "" && id != e.ID {
			err = fmt.Errorf("%s was told as %s, and now as %s", key, id, e.ID)
		}
		v.ids[key] = e.ID
	}
	v.bodies[e.ID], v.last = sum, max(v.last, e.Data.Sequence)
	v.wrong = errors.Join(v.wrong, err)
}

// keyOf identifies what happens once; "" for what may happen again.
func keyOf(e *apply.Event) string {
	if e.Record == "" || e.Type == apply.EventDrifted {
		return ""
	}
	return string(e.Type) + " " + e.Record
}

// check holds that the receiver was told all that the log has, and nothing else.
func (v *receiver) check(state string) error {
	missing, err := "", error(nil)
	var logged map[string]bool
	uerr := until("the hook is told all", func() bool {
		logged, missing = map[string]bool{}, ""
		v.mu.Lock()
		defer v.mu.Unlock()
		for e, rerr := range events.Read(state, 0) {
			if err = rerr; err != nil {
				return true
			}
			id := fmt.Sprintf("%s/%d", instance, e.Sequence)
			logged[id] = true
			if _, isTold := v.bodies[id]; !isTold {
				missing = id + " " + keyOf(&e)
			}
		}
		return missing == ""
	})
	if uerr != nil {
		return fmt.Errorf("%w: but for %s", uerr, missing)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for id := range maps.Keys(v.bodies) {
		if !logged[id] {
			err = errors.Join(err, fmt.Errorf("%s was told, and is not in the log", id))
		}
	}
	return errors.Join(err, v.wrong)
}
