package record

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"dtesn-agent/schema"
)

// A Hold is what must not be applied; that of the head is in force. Its JSON also has
// the "digests" of the entries, for agents that know holds by digest only. A hold with
// anything that this agent does not understand counts as paused.
type Hold struct {
	Paused bool `json:"paused"` // nothing may be applied until `agent resume`
	// By is "engine", "operator", "probation", "hook", or "agent" where the agent
	// found no history that it could read.
	By        string     `json:"by"`
	Reason    string     `json:"reason"`
	Since     float64    `json:"since"`     // Unix seconds
	Requester *Requester `json:"requester"` // who ordered it; nil if nobody did
	Entries   []Entry    `json:"entries"`
}

// A Requester is who gave an order.
type Requester struct {
	UID int `json:"uid"` // of the process that asked, proven by the kernel
	// User and Login are the names of that user and of the login, as the client claims.
	User  string `json:"user,omitempty"`
	Login string `json:"login,omitempty"`
}

// An Entry is values that must not come together again: Parameters with all of them
// must not be applied.
type Entry struct {
	// Values are by name; the zero Value means that the parameter is unset.
	Values    map[string]schema.Value `json:"values"`
	By        string                  `json:"by"`
	Reason    string                  `json:"reason"`
	Since     float64                 `json:"since"`
	Requester *Requester              `json:"requester"`

	// Digest stands for the values in an entry of a record that was written
	// before entries had any; Names are the parameters that it covers.
	Digest schema.Digest `json:"digest,omitempty"`
	Names  []string      `json:"parameters,omitempty"`
}

// String returns who it is on one line: "alice (uid 1000, login bob)".
func (q *Requester) String() string {
	uid := fmt.Sprintf("uid %d", q.UID)
	if q.Login != "" && q.Login != q.User {
		uid += ", login " + q.Login
	}
	if q.User == "" {
		return "(" + uid + ")"
	}
	return q.User + " (" + uid + ")"
}

// Entry returns an entry of h with these values.
func (h *Hold) Entry(values map[string]schema.Value) Entry {
	return Entry{Values: values, By: h.By, Reason: h.Reason, Since: h.Since, Requester: h.Requester}
}

// Matches reports whether p has all values of the entry. Parameters that are not known
// do not count; an entry of only such ones matches nothing. A digest matches every p
// that lacks one of its parameters which is not known: nobody can tell.
func (e *Entry) Matches(p schema.Parameters, known func(name string) bool) bool {
	if e.Digest != "" {
		unclear := func(name string) bool { return !known(name) && p.Get(name).IsZero() }
		covered := func(name string) bool { return len(e.Names) == 0 || slices.Contains(e.Names, name) }
		return slices.ContainsFunc(e.Names, unclear) || p.Select(covered).Digest() == e.Digest
	}
	counts := 0
	for name, v := range e.Values {
		if !known(name) {
			continue
		}
		if counts++; !p.Get(name).Equal(v) {
			return false
		}
	}
	return counts > 0
}

// unknown returns what the entry has that is no value of a parameter, or "".
func (e *Entry) unknown() string {
	if len(e.Values) == 0 && e.Digest == "" {
		return "an entry without values"
	}
	if e.Digest != "" && (len(e.Digest) != 64 || strings.Trim(string(e.Digest), "0123456789abcdef") != "") {
		return "an entry with the digest " + string(e.Digest)
	}
	for _, name := range slices.Sorted(maps.Keys(e.Values)) {
		v := e.Values[name]
		_, number := v.Float()
		if _, text := v.Text(); !number && !text && !v.IsZero() {
			return fmt.Sprintf("an entry with %s = %s", name, v)
		}
	}
	return ""
}

// String returns the values on one line, sorted by name.
func (e *Entry) String() string {
	if e.Digest != "" {
		return "digest " + string(e.Digest[:min(len(e.Digest), 12)])
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(e.Values)) {
		parts = append(parts, name+" "+e.Values[name].String())
	}
	return strings.Join(parts, ", ")
}

// Match returns the first entry that matches p, nil if none does, paused or not. A nil
// Hold has no entries.
func (h *Hold) Match(p schema.Parameters, known func(name string) bool) *Entry {
	if h == nil {
		return nil
	}
	for i := range h.Entries {
		if h.Entries[i].Matches(p, known) {
			return &h.Entries[i]
		}
	}
	return nil
}

// Holds reports whether p must not be applied. A nil Hold holds nothing.
func (h *Hold) Holds(p schema.Parameters, known func(name string) bool) bool {
	return h != nil && (h.Paused || h.Match(p, known) != nil)
}

// fields is a Hold without its methods.
type fields Hold

// holdJSON is the JSON of a Hold, with the digests of its entries, sorted.
type holdJSON struct {
	fields
	Digests []schema.Digest `json:"digests"`
}

// digests returns the digests of the entries, sorted.
func digests(entries []Entry) []schema.Digest {
	list := []schema.Digest{}
	for _, e := range entries {
		list = append(list, cmp.Or(e.Digest, schema.NewParameters(e.Values).Digest()))
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// MarshalJSON implements json.Marshaler.
func (h Hold) MarshalJSON() ([]byte, error) {
	h.Entries = append([]Entry{}, h.Entries...)
	j := holdJSON{fields(h), digests(h.Entries)}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(j); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// UnmarshalJSON implements json.Unmarshaler. It never fails: what it does not understand
// becomes a pause. Digests of older agents, that no entry has, become entries.
func (h *Hold) UnmarshalJSON(text []byte) error {
	var j holdJSON
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	err := dec.Decode(&j) // it goes on after what it does not know
	*h = Hold(j.fields)
	known := digests(h.Entries)
	for _, d := range j.Digests {
		if !slices.Contains(known, d) {
			h.Entries = append(h.Entries, Entry{By: j.By, Reason: j.Reason, Since: j.Since, Requester: j.Requester, Digest: d})
		}
	}
	unknown := ""
	if err != nil {
		unknown = strings.TrimPrefix(err.Error(), "json: ")
	}
	for i := range h.Entries {
		unknown = cmp.Or(unknown, h.Entries[i].unknown())
	}
	if unknown != "" && !h.Paused {
		h.Paused, h.By = true, cmp.Or(h.By, "agent")
		h.Reason = strings.TrimPrefix(h.Reason+"; the hold has unknown content ("+unknown+") and counts as paused", "; ")
	}
	return nil
}

// Cover gives the entries of an older agent the names that their digests cover: all
// parameters of the record that has the hold.
func (h *Hold) Cover(names []string) {
	if h == nil {
		return
	}
	for i := range h.Entries {
		if e := &h.Entries[i]; e.Digest != "" && e.Names == nil {
			e.Names = names
		}
	}
}

// Text returns who holds, and why, on one line: "held by engine: order 20 is bad".
func (h *Hold) Text() string {
	what := "held"
	if h.Paused {
		what = "paused"
	}
	return what + " by " + h.By + ": " + h.Reason
}
