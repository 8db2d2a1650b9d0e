package apply_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/watcher/document"
)

// signers is a git source that trusts the keys it has.
type signers struct {
	readable
	mu     sync.Mutex
	keys   string
	lax    bool  // it asks for no signature
	lost   error // the file of keys cannot be read
	looks  int
	onLook func()
	checks int
}

func (s *signers) CheckSigner(from document.Source) (*document.Refusal, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.checks++
	if s.lost != nil {
		return nil, s.lost
	}
	if !s.lax && (from.Key == "" || !strings.Contains(s.keys, from.Key)) {
		return &document.Refusal{Reason: "no allowed signer", Hint: "sign it"}, nil
	}
	return nil, nil
}

func (s *signers) Sync() {
	s.mu.Lock()
	s.looks++
	look := s.onLook
	s.mu.Unlock()
	if look != nil {
		look()
	}
}

func (s *signers) tell(change func()) { s.mu.Lock(); defer s.mu.Unlock(); change() }

// signed is a Document of a git source: commit, judged while follows ran, signed
// with key.
func signed(p schema.Parameters, commit, follows, key string) *document.Document {
	doc := documentOf(p, commit)
	doc.Source = document.Source{Kind: "git", Location: "test", Revision: strings.Repeat(commit, 40), Key: key}
	if follows != "" {
		doc.Follows = strings.Repeat(follows, 40)
	}
	return doc
}

// inGit is a world with a judge, in which the commit a runs.
func inGit(t *testing.T, do func(w *world, s *signers)) {
	synctest.Test(t, func(t *testing.T) {
		w, s := newWorld(t, t.TempDir()), &signers{keys: "ada eve"}
		w.source = s
		w.restart()
		defer w.end()
		w.offer(signed(size(512), "a", "", "ada"))
		w.check("a runs", want{runs: size(512), outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
		do(w, s)
	})
}

func (w *world) offer(doc *document.Document) {
	w.r.Document(doc)
	w.pass(100 * time.Millisecond)
}

// TestTheSignerOfACandidateIsChecked: a candidate that waits for the engine is not sent
// once its signer is not trusted any more, whatever the source shows since, and
// whether or not the agent was restarted.
func TestTheSignerOfACandidateIsChecked(t *testing.T) {
	for name, between := range map[string]func(w *world){
		"the same agent":           func(*world) {},
		"a restart, and no source": func(w *world) { w.restart() },
		"a restart, and another commit that is refused": func(w *world) {
			w.restart()
			doc := signed(size(2048), "c", "a", "eve")
			doc.Files, doc.Refused = nil, &document.Refusal{Reason: "no allowed signer"}
			w.offer(doc)
		},
	} {
		for _, key := range []string{"eve", ""} { // "" is from before signatures were asked for
			inGit(t, func(w *world, s *signers) {
				w.engine.tell(func(e *scripted) { e.down = true })
				s.tell(func() { s.lax = key == "" })
				w.offer(signed(size(1024), "b", "a", key))
				w.pass(500 * time.Millisecond)
				w.engine.ban(size(1024))
				s.tell(func() { s.keys, s.lax = "ada", false })
				between(w)
				w.pass(10 * time.Second)
				w.engine.tell(func(e *scripted) { e.down = false })
				w.pass(time.Minute)
				if !w.engine.running().Equal(size(512)) || w.store.Head().Commit != w.store.Applied().Commit || w.store.Head().Kind != record.KindRevert {
					t.Errorf("%s, key %q: the engine runs %v, the head is %+v", name, key, w.engine.running(), w.store.Head())
				}
				if w.r.Status().Held != nil {
					t.Errorf("%s, key %q: held %+v", name, key, w.r.Status().Held)
				}
			})
		}
	}
}

// TestACandidateWaitsForItsSigners: while it cannot be told whether the source is
// trusted nothing is sent and nothing is withdrawn.
func TestACandidateWaitsForItsSigners(t *testing.T) {
	inGit(t, func(w *world, s *signers) {
		w.engine.tell(func(e *scripted) { e.down = true })
		w.offer(signed(size(1024), "b", "a", "ada"))
		w.pass(2 * time.Second)
		s.tell(func() { s.lost = errors.New("read signers: no such file") })
		w.engine.tell(func(e *scripted) { e.down = false })
		w.engine.ban(size(1024))
		w.pass(time.Minute)
		w.check("the file is gone", want{runs: size(512), outcome: record.Pending, state: apply.StateDegraded, ready: true, open: true})
		w.engine.allow(size(1024))
		s.tell(func() { s.lost = nil })
		w.pass(2 * time.Minute)
		w.check("it is back", want{runs: size(1024), outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
	})
}

// TestCheckedAgainstWhatRuns: a commit that was judged while a ran is not begun
// once b runs, which came from elsewhere, before the source has judged it again.
func TestCheckedAgainstWhatRuns(t *testing.T) {
	inGit(t, func(w *world, s *signers) {
		w.offer(signed(size(1024), "b", "a", "ada"))
		w.engine.ban(size(2048))
		late := signed(size(2048), "c", "a", "ada")
		s.tell(func() {
			s.onLook = func() {
				doc := signed(size(2048), "c", "b", "ada")
				doc.Files, doc.Refused = nil, &document.Refusal{Reason: "does not descend from b"}
				w.r.Document(doc)
			}
		})
		w.offer(late)
		w.pass(time.Second)
		w.check("judged again", want{runs: size(1024), outcome: record.Refused, state: apply.StateRefused, ready: true})
		if s.looks != 1 {
			t.Errorf("the source was asked to look %d times", s.looks)
		}
		w.engine.allow(size(2048))
		s.tell(func() { s.onLook = func() { w.r.Document(signed(size(2048), "d", "b", "ada")) } })
		w.offer(signed(size(2048), "d", "a", "ada"))
		w.pass(time.Second)
		w.check("it descends", want{runs: size(2048), outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
	})
}
