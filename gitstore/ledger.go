package gitstore

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
)

// An entry is a record as the journal has it: its git objects, bit for bit.
type entry struct {
	commit  plumbing.Hash
	objects [4]gitObject // parameters.yaml, snapshot.json, tree, commit
}

// A gitObject is the content of an object, with its name.
type gitObject struct {
	t       plumbing.ObjectType
	hash    plumbing.Hash
	content []byte
}

func newObject(t plumbing.ObjectType, content []byte) gitObject {
	return gitObject{t, plumbing.ComputeHash(t, content), content}
}

func newEntry(contents [4][]byte) (e entry) {
	for i, t := range []plumbing.ObjectType{plumbing.BlobObject, plumbing.BlobObject, plumbing.TreeObject, plumbing.CommitObject} {
		e.objects[i] = newObject(t, contents[i])
	}
	e.commit = e.objects[3].hash
	return e
}

const (
	// maxEntry bounds the payload of a record's frame, in bytes.
	maxEntry = 128 << 10
	// maxChange bounds that of a change, apart from its hold: so a revert or a
	// rollback of it, with the reasons and a hold, can always be recorded.
	maxChange = 64 << 10
)

// payload is the four contents, each after its length.
func (e *entry) payload() []byte {
	var b []byte
	for _, o := range e.objects {
		b = appendBytes(b, o.content)
	}
	return b
}

func appendBytes(b, content []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(content))), content...)
}

func takeBytes(b []byte) (content, rest []byte, err error) {
	if len(b) < 4 || uint64(len(b)-4) < uint64(binary.LittleEndian.Uint32(b)) {
		return nil, nil, errors.New("the payload is too short")
	}
	n := 4 + int(binary.LittleEndian.Uint32(b))
	return b[4:n:n], b[n:], nil
}

func takeEntry(b []byte) (e entry, rest []byte, err error) {
	var contents [4][]byte
	for i := range contents {
		if contents[i], b, err = takeBytes(b); err != nil {
			return entry{}, nil, err
		}
		contents[i] = bytes.Clone(contents[i]) // the segment need not stay in memory for it
	}
	return newEntry(contents), b, nil
}

// A ledger is what the journal says: the state of its last segment with the
// frames after it. The JSON is the head of a state frame.
type ledger struct {
	identity
	Marker   string            `json:"marker"`          // content of markerFile in the repository
	First    int               `json:"first"`           // index of the oldest record
	Begin    string            `json:"begin,omitempty"` // its commit, if there were older ones
	Head     string            `json:"head,omitempty"`  // a commit, as the next two
	Applied  string            `json:"applied,omitempty"`
	Retried  string            `json:"retried,omitempty"`
	Facts    map[string][]byte `json:"facts,omitempty"`    // the set frames by name
	Packs    []packInfo        `json:"packs,omitempty"`    // of checkpoints, the oldest first
	Obsolete []string          `json:"obsolete,omitempty"` // packs that were joined or pruned, the last maxObsolete
	Packed   int               `json:"packed"`             // how many of the entries are in a pack

	entries []entry
}

const (
	markApplied = "applied" // the names of marks
	markRetried = "retried"
	maxFact     = 4 << 10 // bytes of a set frame
	maxObsolete = 64      // their removal may not be on the disk yet
)

func markPayload(name, commit string) []byte { return []byte(name + " " + commit) }

func setPayload(name string, value []byte) []byte {
	return append(append([]byte(name), 0), value...)
}

// payload is the JSON of the ledger and the entries.
func (l *ledger) payload() ([]byte, error) {
	text, err := json.Marshal(l)
	if err != nil {
		return nil, fmt.Errorf("encode the state of the journal: %w", err)
	}
	b := appendBytes(nil, text)
	for i := range l.entries {
		b = append(b, l.entries[i].payload()...)
	}
	return b, nil
}

// A packInfo is a pack that a checkpoint wrote: the records from Low to High.
type packInfo struct {
	Name string `json:"name"`
	Low  int    `json:"low"`
	High int    `json:"high"`
}

func (p packInfo) records() int { return p.High - p.Low + 1 }

// unpacked lists the entries that are in no pack yet.
func (l *ledger) unpacked() []entry { return l.entries[l.Packed:] }

func (l *ledger) objects() map[plumbing.Hash]gitObject {
	all := make(map[plumbing.Hash]gitObject, 4*len(l.entries))
	for i := range l.entries {
		for _, o := range l.entries[i].objects {
			all[o.hash] = o
		}
	}
	return all
}

func (l *ledger) add(e entry) {
	l.entries = append(l.entries, e)
	l.Head = e.commit.String()
}

// trim returns the ledger once the first n of the unpacked entries are packed: of what
// is packed, it keeps the applied record and the head alone.
func (l *ledger) trim(n int) *ledger {
	next := *l
	next.Facts, next.Packs, next.entries = maps.Clone(l.Facts), slices.Clone(l.Packs), nil
	for _, e := range l.entries[:l.Packed+n] {
		if name := e.commit.String(); name == l.Head || name == l.Applied {
			next.entries = append(next.entries, e)
		}
	}
	next.Packed = len(next.entries)
	next.entries = append(next.entries, l.entries[l.Packed+n:]...)
	return &next
}

// replay reads the frames of a segment, of which the first is the state.
func replay(frames []frame) (*ledger, error) {
	l := new(ledger)
	text, rest, err := takeBytes(frames[0].payload)
	if err == nil {
		err = json.Unmarshal(text, l)
	}
	for err == nil && len(rest) > 0 {
		var e entry
		if e, rest, err = takeEntry(rest); err == nil {
			l.entries = append(l.entries, e)
		}
	}
	if err != nil || l.Packed < 0 || l.Packed > len(l.entries) {
		return nil, fmt.Errorf("replay the journal: state: %w", errors.Join(err, errDamaged))
	}
	if l.Facts == nil {
		l.Facts = map[string][]byte{}
	}
	for i, f := range frames[1:] {
		if err := l.apply(f); err != nil {
			return nil, fmt.Errorf("replay the journal: frame %d: %w", i+1, err)
		}
	}
	return l, nil
}

// apply adds what a frame says. Kinds that a later version may add are left out.
func (l *ledger) apply(f frame) error {
	switch f.kind {
	case frameRecord:
		e, rest, err := takeEntry(f.payload)
		if err != nil || len(rest) > 0 {
			return fmt.Errorf("record: %w", errors.Join(err, errDamaged))
		}
		l.add(e)
	case frameMark:
		name, commit, _ := strings.Cut(string(f.payload), " ")
		switch name {
		case markApplied:
			l.Applied = commit
		case markRetried:
			l.Retried = commit
		}
	case frameSet:
		name, value, _ := bytes.Cut(f.payload, []byte{0})
		l.set(string(name), value)
	}
	return nil
}

// set keeps a fact; an empty value forgets it.
func (l *ledger) set(name string, value []byte) {
	l.Facts[name] = bytes.Clone(value)
	if len(value) == 0 {
		delete(l.Facts, name)
	}
}
