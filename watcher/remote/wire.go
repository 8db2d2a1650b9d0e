package remote

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"

	"dtesn-agent/schema/problem"
)

// An advert is what a server says first: gitprotocol-v2(5) its capabilities,
// gitprotocol-pack(5) (versions 0 and 1) its refs, with the capabilities
// behind the first.
type advert struct {
	version int
	caps    map[string]string
	refs    refs // version 0 and 1: those that were asked for
}

// refs are what refs name, by full name; a tag object's commit stands under
// the name with "^{}" behind.
type refs map[string]plumbing.Hash

// readAdvert reads an advertisement and keeps of its refs those in names, so
// that a host with many refs costs no memory. Over HTTP a line "# service=…"
// and a flush packet may stand before it.
func readAdvert(p *pktReader, names []string) (*advert, error) {
	a := &advert{caps: map[string]string{}, refs: refs{}}
	wanted := map[string]bool{}
	for _, n := range names {
		wanted[n], wanted[n+"^{}"] = true, true
	}
	first, preamble := true, false
	for {
		b, m, err := p.next()
		if errors.Is(err, io.EOF) {
			return nil, &notGitError{"it closed the connection without a word"}
		}
		if err != nil {
			return nil, err
		}
		if m == flush && preamble {
			preamble = false
			continue
		}
		if m != data {
			return a, nil
		}
		text := strings.TrimSuffix(string(b), "\n")
		switch {
		case first && strings.HasPrefix(text, "# service="):
			preamble = true
			continue
		case first && text == "version 1":
			continue
		case first && text == "version 2":
			a.version = 2
		case a.version == 2:
			key, value, _ := strings.Cut(text, "=")
			a.note(key, value)
		default:
			if err := a.takeRef(text, first, wanted); err != nil {
				return nil, err
			}
		}
		first = false
	}
}

// note keeps a capability that matters; a server may have any number.
func (a *advert) note(key, value string) {
	switch key {
	case "fetch", "filter", "object-format":
		a.caps[key] = value
	}
}

// takeRef takes one line of a version 0 advertisement: "<hash> <name>", the
// first with a NUL and the capabilities behind.
func (a *advert) takeRef(text string, first bool, wanted map[string]bool) error {
	if first {
		var caps string
		text, caps, _ = strings.Cut(text, "\x00")
		for field := range strings.FieldsSeq(caps) {
			key, value, _ := strings.Cut(field, "=")
			a.note(key, value)
		}
	}
	hex, name, ok := strings.Cut(text, " ")
	if !ok || len(hex) < 40 {
		if strings.HasPrefix(text, "shallow ") {
			return nil
		}
		return &notGitError{fmt.Sprintf("it advertises %q", line([]byte(text)))}
	}
	if wanted[name] {
		h, err := parseHash(hex)
		if err != nil {
			return err
		}
		a.refs[name] = h
	}
	return nil
}

// checkFormat refuses a repository that names objects otherwise than by SHA-1.
func (a *advert) checkFormat() error {
	if f := a.caps["object-format"]; f != "" && f != "sha1" {
		return problem.New("", fmt.Errorf("the repository uses %s object names, which this agent does not read", line([]byte(f))), "use a repository of format sha1")
	}
	return nil
}

func (a *advert) canFilter() bool {
	if a.version == 2 {
		return strings.Contains(" "+a.caps["fetch"]+" ", " filter ")
	}
	_, ok := a.caps["filter"]
	return ok
}

func parseHash(s string) (plumbing.Hash, error) {
	if len(s) != 40 || strings.Trim(s, "0123456789abcdef") != "" {
		return plumbing.ZeroHash, &notGitError{fmt.Sprintf("it names an object %q", line([]byte(s)))}
	}
	return plumbing.NewHash(s), nil
}

// lsRefs asks a version 2 server for the refs in names.
func lsRefs(names []string) message {
	var m message
	m.line("command=ls-refs")
	m.line("agent=%s", agent)
	m.mark(delimiter)
	m.line("peel")
	for _, n := range names {
		m.line("ref-prefix %s", n)
	}
	m.mark(flush)
	return m
}

// readRefs reads what lsRefs asked for: "<hash> <name>[ peeled:<hash>]…". A
// prefix brings more names than were asked for.
func readRefs(p *pktReader, names []string) (refs, error) {
	found := refs{}
	wanted := map[string]bool{}
	for _, n := range names {
		wanted[n] = true
	}
	for {
		text, m, err := p.text()
		if err != nil {
			return nil, err
		}
		if m != data {
			return found, nil
		}
		fields := strings.Split(text, " ")
		if len(fields) < 2 {
			return nil, &notGitError{fmt.Sprintf("it lists %q", line([]byte(text)))}
		}
		if fields[0] == "unborn" || !wanted[fields[1]] {
			continue
		}
		if found[fields[1]], err = parseHash(fields[0]); err != nil {
			return nil, err
		}
		for _, f := range fields[2:] {
			if hex, ok := strings.CutPrefix(f, "peeled:"); ok {
				if found[fields[1]+"^{}"], err = parseHash(hex); err != nil {
					return nil, err
				}
			}
		}
	}
}

// A want is what is fetched: a commit or tag, with its history down to depth
// (0: all), without the objects that filter leaves out, where the server can.
type want struct {
	hash   plumbing.Hash
	depth  int
	filter string
}

// fetchRequest asks for a pack.
func (a *advert) fetchRequest(w want, progress bool) message {
	var m message
	if !a.canFilter() {
		w.filter = ""
	}
	if a.version != 2 {
		caps := []string{"side-band-64k", "ofs-delta", "agent=" + agent}
		if !progress {
			caps = append(caps, "no-progress")
		}
		if w.filter != "" {
			caps = append(caps, "filter")
		}
		m.line("want %s %s", w.hash, strings.Join(caps, " "))
		if w.depth > 0 {
			m.line("deepen %d", w.depth)
		}
		if w.filter != "" {
			m.line("filter %s", w.filter)
		}
		m.mark(flush)
		m.line("done")
		return m
	}
	m.line("command=fetch")
	m.line("agent=%s", agent)
	m.mark(delimiter)
	m.line("ofs-delta")
	if !progress {
		m.line("no-progress")
	}
	m.line("want %s", w.hash)
	if w.depth > 0 {
		m.line("deepen %d", w.depth)
	}
	if w.filter != "" {
		m.line("filter %s", w.filter)
	}
	m.line("done")
	m.mark(flush)
	return m
}

// readToPack reads an answer up to where the pack begins, in the side band.
func (a *advert) readToPack(p *pktReader) error {
	for {
		text, m, err := p.text()
		if err != nil {
			return err
		}
		switch {
		case m != data:
			// between the sections, or behind the shallow commits
		case a.version == 2 && text == "packfile", a.version != 2 && text == "NAK":
			return nil
		case a.version != 2 && strings.HasPrefix(text, "ACK "):
			return nil
		}
	}
}

// A packReader is the pack in the side band: gitprotocol-pack(5), "Packfile
// Data". Progress goes to progress, if it is set, and an error of the server
// ends the reading.
type packReader struct {
	p        *pktReader
	rest     []byte
	progress io.Writer
	over     bool
}

func (r *packReader) Read(b []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.over {
			return 0, io.EOF
		}
		payload, m, err := r.p.next()
		switch {
		case errors.Is(err, io.EOF):
			return 0, fmt.Errorf("the pack was cut short: %w", io.ErrUnexpectedEOF)
		case err != nil:
			return 0, err
		case m != data:
			r.over = true
			continue
		case len(payload) == 0:
			return 0, &notGitError{"an empty packet within the pack"}
		}
		switch payload[0] {
		case 1:
			r.rest = payload[1:]
		case 2:
			if r.progress != nil {
				_, _ = r.progress.Write(payload[1:])
			}
		case 3:
			return 0, &serverError{line(payload[1:])}
		default:
			return 0, &notGitError{fmt.Sprintf("side band %d", payload[0])}
		}
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
