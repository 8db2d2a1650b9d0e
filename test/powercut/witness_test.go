package powercut

import (
	"encoding/json"
	"maps"
	"strconv"
	"strings"
	"sync"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
)

// A witness keeps what the agent said to be so, by whatever way. It is safe
// for concurrent use.
type witness struct {
	mu      sync.Mutex
	applied map[string]string  // snapshot id: the cache_ttl_seconds that it set, "" if not said
	by      map[[2]string]bool // way, snapshot id
	repairs []string
	last    []string // the last lines of the log
	// onApplied, if set, is called when a way says for the first time that a state
	// is applied.
	onApplied func(by string)
}

func (w *witness) note(by, id, ttl string) {
	w.mu.Lock()
	if w.applied == nil {
		w.applied, w.by = map[string]string{}, map[[2]string]bool{}
	}
	if w.applied[id] == "" {
		w.applied[id] = ttl
	}
	known, tell := w.by[[2]string{by, id}], w.onApplied
	w.by[[2]string{by, id}] = true
	w.mu.Unlock()
	if !known && tell != nil {
		tell(by)
	}
}

func (w *witness) line(text []byte) {
	var l struct{ Msg, Snapshot, Description, What, Revert string }
	err := json.Unmarshal(text, &l)
	w.mu.Lock()
	w.last = append(w.last[max(0, len(w.last)-60):], string(text))
	if err == nil && strings.HasPrefix(l.Msg, "repaired the snapshot repository") {
		w.repairs = append(w.repairs, string(text))
	}
	w.mu.Unlock()
	switch {
	case err != nil:
	case l.Msg == "applied":
		ttl, _ := strings.CutPrefix(l.Description, "state ")
		if _, err := strconv.Atoi(ttl); err != nil {
			ttl = ""
		}
		w.note("log", l.Snapshot, ttl)
	case l.Revert != "":
		w.note("revert", l.Revert, "")
	}
}

func (w *witness) status(st *apply.Status) {
	for _, a := range st.Attempts {
		if a.Outcome == record.Applied {
			w.note("status", a.SnapshotID, "")
		}
	}
	if r := st.Running; r.Confirmed && st.Current != nil {
		w.note("status", r.SnapshotID, strconv.Itoa(ttlOf(*st.Current)))
	}
}

// forget begins anew: the disk now holds another history, with these applied.
func (w *witness) forget(applied map[string]string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.applied, w.by, w.repairs = applied, map[[2]string]bool{}, nil
}

// take returns what was said to be repaired since it was last asked.
func (w *witness) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	repairs := w.repairs
	w.repairs = nil
	return repairs
}

func (w *witness) tail() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.last, "\n")
}

// told copies what was said to be applied.
func (w *witness) told() map[string]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.applied)
}

func (w *witness) when(f func(by string)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.onApplied = f
}
