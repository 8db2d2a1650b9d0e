package apply

import (
	"encoding/json"

	"dtesn-agent/schema"
)

// acceptedFact is the name of the fact of the Store with the last accepted.
const acceptedFact = "accepted"

// accepted is what the source declared after a record was applied and that changed no
// parameter here, such as an experiment that other instances are in. A policy compares
// the next change with its experiments.
type accepted struct {
	Record      string              `json:"record"` // commit of the applied one
	Revision    string              `json:"revision"`
	Experiments []schema.Membership `json:"experiments"`
}

// loadAccepted loads what an earlier process kept.
func (s *State) loadAccepted() {
	if text := s.opt.Store.Fact(acceptedFact); text != nil {
		_ = json.Unmarshal(text, &s.policy.accepted) // invalid counts as missing
	}
}

// keepAccepted stores what is declared as accepted.
func (s *State) keepAccepted() {
	if s.opt.Policy == nil || s.applied == nil {
		return
	}
	now := accepted{s.applied.Commit, s.declared.doc.Revision(), s.declared.config.Experiments}
	s.policy.accepted = now
	if text, err := json.Marshal(now); err == nil && len(text) <= 4<<10 {
		s.facts.keep(acceptedFact, text)
	}
}

// lastAccepted returns the revision and the experiments that were accepted last, which are
// those of the applied record or newer.
func (s *State) lastAccepted() (revision string, experiments []schema.Membership) {
	if a := s.policy.accepted; a.Record != "" && a.Record == s.applied.Commit {
		return a.Revision, a.Experiments
	}
	return s.applied.Source.Revision, s.applied.Experiments
}
