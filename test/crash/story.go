//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"syscall"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// A story is what happens to one agent, step after step.
type story struct {
	name     string
	prefix   string   // of its phases; stories of one prefix share what they know
	flags    []string // of the agent, besides those of all
	origin   func(*world) (origin, error)
	prepared func() (dir string, err error) // a state directory to begin with; nil for none
	first    int                            // the state that is declared before the first step
	steps    []step
}

// A step is one thing that happens, and what comes of it, killed or not.
type step struct {
	name  string
	phase string // what is alike in it, for what is to be killed at
	start bool   // it begins by starting the agent
	stop  bool   // it ends with the agent
	again int    // how often the starts after a kill may be killed as well
	do    func(*world) error
	want  want
	// down happens while the agent is dead after the first kill, and leads
	// elsewhere than want; nil for nothing.
	down     func(*world) error
	downWant want
	// fresh: it is over only when the agent saw another revision than before.
	fresh bool
	// or is where an order leads that was killed before it was on record; it is
	// given again then.
	or *want
}

func inSync(ttl int) want { return want{state: apply.StateInSync, ttl: ttl} }
func held(ttl int) want   { return want{state: apply.StateHeld, ttl: ttl} }
func paused(ttl int) want { return want{state: apply.StateHeld, ttl: ttl, paused: true} }

// declare makes state n, with further lines, what the source says.
func (w *world) declare(n int, further ...string) error {
	text := fmt.Sprintf("environment: %s\ndescription: state %d\nparameters:\n  cache_ttl_seconds: %d\n", environment, n, n)
	for _, line := range further {
		text += line + "\n"
	}
	return w.origin.write(text)
}

const refusedLine = "  esn_reservoir_size: 16384"

func declaring(n int, further ...string) func(*world) error {
	return func(w *world) error { return w.declare(n, further...) }
}

func change(n int, further ...string) step {
	return step{name: fmt.Sprintf("change to %d", n), phase: "change", again: 1, do: declaring(n, further...), want: inSync(n)}
}

// overtaken is a change after whose kill something else is declared before the
// agent starts again.
func overtaken(n int, further ...string) step {
	s := change(n, further...)
	s.name, s.phase = fmt.Sprintf("change to %d, or %d", n, n+1), "overtaken change"
	s.down, s.downWant = declaring(n+1), inSync(n+1)
	if len(further) > 0 {
		s.want, s.fresh = held(n-1), true
	}
	return s
}

// rejection declares what the engine refuses, while it runs another state.
func rejection(n, runs int) step {
	return step{name: fmt.Sprintf("rejection of %d", n), phase: "rejection", again: 2, do: declaring(n, refusedLine), want: held(runs), fresh: true}
}

func order(phase string, x want, or want, args ...string) step {
	return step{
		name: strings.Join(args, " "), phase: phase, again: 1, want: x, or: &or,
		do: func(w *world) error { return w.order(false, args...) },
	}
}

func starting(phase string, again int, x want) step {
	return step{name: phase, phase: phase, start: true, again: again, want: x}
}

func stopping() step {
	return step{name: "stop", phase: "stop", stop: true, do: func(w *world) error {
		return syscall.Kill(w.agent.pid, syscall.SIGTERM)
	}}
}

// rollbackTo goes back to the newest applied record with that state. Without an
// or, the engine is to reject it.
func rollbackTo(n int, x want, or *want, flags ...string) step {
	s := step{name: fmt.Sprintf("rollback to %d", n), phase: "rollback", again: 1, want: x, or: or}
	if or == nil {
		s.phase, s.again = "rejected rollback", 2
	}
	s.do = func(w *world) error {
		out, err := exec.Command(w.program, "snapshots", "--state", w.state, "--limit", "1000", "--json").Output()
		if err != nil {
			return err
		}
		var list struct {
			Snapshots []struct {
				ID      string `json:"snapshot_id"`
				Kind    record.Kind
				Outcome record.Outcome
				Config  schema.Parameters `json:"config_data"`
			}
		}
		if err := json.Unmarshal(out, &list); err != nil {
			return err
		}
		for _, r := range list.Snapshots {
			if r.Outcome == record.Applied && r.Kind.Candidate() && ttlOf(r.Config) == n {
				return w.order(s.or == nil, append([]string{"rollback", r.ID, "--reason", "back to what was"}, flags...)...)
			}
		}
		return fmt.Errorf("no applied record has state %d", n)
	}
	return s
}

// byHand changes the engine past the agent, and has the agent look.
func byHand(w *world) error {
	client := over(w.socket)
	defer client.CloseIdleConnections()
	var a struct{ Success bool }
	if err := ask(client, http.MethodPost, "/v1/config/update", `{"parameter": "bseries_max_order", "value": 3}`, &a); err != nil || !a.Success {
		return fmt.Errorf("change the engine by hand: %w (%v)", err, a.Success)
	}
	return w.order(false, "sync")
}

// anotherEngine replaces the engine by a new one, which has forgotten all.
func anotherEngine(limit string, runs int) step {
	return step{name: "another engine", phase: "another engine", again: 1, want: inSync(runs), do: func(w *world) error {
		w.stopEngine()
		return w.startEngine(limit)
	}}
}

// filesStory begins on an empty state directory and has more than twenty changes.
func filesStory() *story {
	whileHeld := held(11)
	return &story{name: "files", origin: newFiles, first: 1, steps: []step{
		starting("first start", 2, inSync(1)),
		change(2),
		change(3, "  esn_reservoir_size: 600"),
		rejection(4, 3),
		change(5),
		order("rollback", held(3), inSync(5), "rollback", "--reason", "the way back", "--hold", "cache_ttl_seconds"),
		change(6),
		order("pause", paused(6), inSync(6), "pause", "--reason", "hands off"),
		{name: "change to 7, paused", phase: "paused change", again: 1, do: declaring(7), want: paused(6), fresh: true},
		order("resume", inSync(7), paused(6), "resume"),
		{name: "an invalid document", phase: "invalid change", again: 1, do: declaring(8, "  esn_resevoir_size: 9"), want: want{state: apply.StateInvalid, ttl: 7}, fresh: true},
		change(9),
		{name: "two changes at once", phase: "two changes", again: 1, want: inSync(11), do: func(w *world) error {
			return errors.Join(w.declare(10), w.declare(11))
		}},
		rejection(12, 11),
		{name: "the rejected one with a comment", phase: "held change", again: 1, do: declaring(12, refusedLine, "# again"), want: held(11), fresh: true},
		rollbackTo(9, paused(9), &whileHeld, "--pause"),
		order("resume into a rejection", held(9), paused(9), "resume"),
		change(13),
		{name: "drift", phase: "drift", again: 1, do: byHand, want: inSync(13)},
		change(14),
		anotherEngine(narrow, 14),
		rollbackTo(3, inSync(14), nil), // which no longer fits
		anotherEngine(roomy, 14),
		rejection(15, 14),
		change(13), // its objects are there already
		{name: "a fix supersedes a rejection", phase: "two changes", again: 1, want: inSync(17), do: func(w *world) error {
			return errors.Join(w.declare(16, refusedLine), w.declare(17))
		}},
		overtaken(30),
		change(40),
		overtaken(41, refusedLine),
		change(50),
		stopping(),
		starting("start", 1, inSync(50)),
		stopping(),
		{name: "start with a change", phase: "start with a change", start: true, again: 2, do: declaring(51), want: inSync(51)},
		change(52),
	}}
}

// gitStory is a shorter one that follows a repository.
func gitStory(name, prefix string, from func(*world) (origin, error)) *story {
	return &story{name: name, prefix: prefix, origin: from, first: 1, steps: []step{
		starting("first start", 2, inSync(1)),
		change(2),
		rejection(3, 2),
		change(4),
		order("rollback", held(2), inSync(4), "rollback", "--reason", "the way back"),
		change(5),
		{name: "a forced push", phase: "rewind", again: 1, want: want{state: apply.StateRefused, ttl: 5}, fresh: true, do: func(w *world) error {
			return errors.Join(git(w.config, "reset", "-q", "--soft", "HEAD~2"), w.declare(6))
		}},
		{name: "the push is taken back", phase: "fast forward", again: 1, want: inSync(7), do: func(w *world) error {
			return errors.Join(git(w.config, "reset", "-q", "--soft", "HEAD@{2}"), w.declare(7))
		}},
		stopping(),
		{name: "start with a change", phase: "start with a change", start: true, again: 2, do: declaring(8), want: inSync(8)},
		change(9),
		change(10),
	}}
}

// packingStory begins with a history that is about to be packed, by which there
// are enough packs to be joined.
func packingStory(prepared func() (string, error)) *story {
	return &story{name: "packing", origin: newFiles, first: 1, prepared: prepared, steps: []step{
		starting("packing", 6, inSync(1)),
		change(2),
		order("rollback", held(1), inSync(2), "rollback", "--reason", "the way back"),
		change(3),
	}}
}

// probationStory has each change watched for a while before it is confirmed.
func probationStory() *story {
	return &story{name: "probation", prefix: "probation: ", flags: []string{"--probation", "200ms"}, origin: newFiles, first: 1, steps: []step{
		starting("first start", 2, inSync(1)),
		change(2),
		rejection(3, 2),
		change(4),
		{name: "a change overtakes one on probation", phase: "two changes", again: 1, want: inSync(6), do: func(w *world) error {
			err := w.declare(5)
			return errors.Join(err, until("state 5 is on probation", func() bool {
				runs, err := w.runs()
				ended, _ := w.agent.dead()
				return err == nil && ttlOf(runs) == 5 || ended
			}), w.declare(6))
		}},
		order("rollback", held(4), inSync(6), "rollback", "--reason", "the way back"),
		overtaken(7),
		change(8),
		overtaken(9, refusedLine),
		stopping(),
		{name: "start with a change", phase: "start with a change", start: true, again: 2, do: declaring(11), want: inSync(11)},
	}}
}
