package remote

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/pktline"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/sideband"
	gittransport "github.com/go-git/go-git/v5/plumbing/transport"

	"dtesn-agent/schema/problem"
)

// readAdvertisement reads what a server sends first: its capabilities and all
// of its refs (gitprotocol-pack(5), protocol 0).
func readAdvertisement(r io.Reader) (*packp.AdvRefs, error) {
	adv := packp.NewAdvRefs()
	err := adv.Decode(r)
	switch {
	case errors.Is(err, packp.ErrEmptyAdvRefs): // a repository without refs
	case errors.Is(err, packp.ErrEmptyInput):
		return nil, fmt.Errorf("the server closed the connection without a response: %w", io.ErrUnexpectedEOF)
	case err != nil:
		return nil, protocolError(err)
	}
	gittransport.FilterUnsupportedCapabilities(adv.Capabilities)
	return adv, checkFormat(strings.Join(adv.Capabilities.Get("object-format"), " "))
}

// capabilities are what a server offers, and whether its copy of the history is cut.
type capabilities struct {
	*capability.List
	isShallow bool
}

func capabilitiesOf(adv *packp.AdvRefs) capabilities {
	return capabilities{adv.Capabilities, len(adv.Shallows) > 0}
}

// readCapabilities reads an advertisement without keeping its refs.
func readCapabilities(r io.Reader) (caps capabilities, err error) {
	s := pktline.NewScanner(r)
	for s.Scan() {
		text := s.Bytes()
		switch {
		case caps.List == nil && (len(text) == 0 || text[0] == '#'): // "# service=…" and its flush
		case caps.List == nil:
			var first bytes.Buffer
			lines := pktline.NewEncoder(&first)
			if err := errors.Join(lines.Encode(text), lines.Flush()); err != nil {
				return caps, err
			}
			adv, err := readAdvertisement(&first)
			if err != nil {
				return caps, err
			}
			caps.List = adv.Capabilities
		case bytes.HasPrefix(text, []byte("shallow ")):
			caps.isShallow = true
		case len(text) == 0:
			return caps, nil
		}
	}
	return caps, scanError(s)
}

// protocolError returns the error of a message that could not be decoded.
func protocolError(err error) error {
	var said *pktline.ErrorLine
	var unexpected *packp.ErrUnexpectedData
	switch {
	case errors.As(err, &said):
		return &serverError{line(said.Text)}
	case errors.As(err, &unexpected) && bytes.Contains(unexpected.Data, []byte("object-format=sha256")):
		return checkFormat("sha256")
	case errors.As(err, &unexpected), errors.Is(err, pktline.ErrInvalidPktLen):
		return &notGitError{line(err.Error())}
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("the response was cut short: %w", err)
	}
	return err
}

// checkFormat refuses object names that are not SHA-1.
func checkFormat(format string) error {
	if format == "" || format == "sha1" {
		return nil
	}
	return problem.New("", fmt.Errorf("the repository has object format %s, which is not supported", line(format)), "use a repository of format sha1")
}

// choose returns the refs in names that a server advertised.
func choose(adv *packp.AdvRefs, names []string) Refs {
	found := Refs{}
	if adv == nil {
		return found
	}
	for _, name := range names {
		h, ok := adv.References[name]
		if name == "HEAD" && adv.Head != nil {
			h, ok = *adv.Head, true
		}
		if ok {
			found[name] = h
		}
	}
	return found
}

// A response is what a server said before the pack.
type response struct {
	Filtered bool // it left out what the filter names
	Common   bool // it sent all between the commit and the one that is there already
}

// A request asks for a pack (gitprotocol-pack(5), protocol 0).
type request struct {
	body     []byte
	filtered bool
	sideband bool
	shallow  bool // the server's copy of the history is cut
}

// newRequest makes a request that uses only what the server offers.
func newRequest(caps capabilities, w Want) (*request, error) {
	offers := caps.Supports
	up := packp.NewUploadRequestFromCapabilities(caps.List)
	q := &request{shallow: caps.isShallow, sideband: offers(capability.Sideband64k), filtered: w.Filter != "" && offers(capability.Filter)}
	up.Wants = []plumbing.Hash{w.Hash}
	if w.Depth > 0 && offers(capability.Shallow) {
		up.Depth = packp.DepthCommits(w.Depth)
	}
	var err error
	set := func(c capability.Capability, values ...string) {
		err = errors.Join(err, up.Capabilities.Set(c, values...))
	}
	if q.filtered {
		up.Filter = packp.Filter(w.Filter)
		set(capability.Filter)
	}
	if offers(capability.NoProgress) {
		set(capability.NoProgress)
	}
	if !q.sideband {
		up.Capabilities.Delete(capability.Sideband)
	}
	var body bytes.Buffer
	lines := pktline.NewEncoder(&body)
	err = errors.Join(err, up.Encode(&body))
	if !w.Have.IsZero() {
		err = errors.Join(err, lines.Encodef("have %s\n", w.Have))
	}
	err = errors.Join(err, lines.EncodeString("done\n"))
	q.body = body.Bytes()
	return q, err
}

// read reads the response to a request and passes the pack to take.
func (q *request) read(r io.Reader, take func(io.Reader) error) (response, error) {
	resp := response{Filtered: q.filtered}
	s := pktline.NewScanner(r)
	for s.Scan() {
		text := strings.TrimSuffix(string(s.Bytes()), "\n")
		switch {
		case strings.HasPrefix(text, "shallow "):
			q.shallow = true
			continue
		case text == "", strings.HasPrefix(text, "unshallow "):
			continue
		case strings.HasPrefix(text, "ACK "):
			resp.Common = !q.shallow
		case text != "NAK":
			return resp, &notGitError{fmt.Sprintf("unexpected %q before the pack", line(text))}
		}
		if !q.sideband {
			return resp, take(r)
		}
		return resp, take(demuxed{sideband.NewDemuxer(sideband.Sideband64k, r)})
	}
	return resp, scanError(s)
}

// demuxed names an error that the server sent within the pack.
type demuxed struct{ *sideband.Demuxer }

func (d demuxed) Read(b []byte) (int, error) {
	n, err := d.Demuxer.Read(b)
	if err != nil {
		if text, ok := strings.CutPrefix(err.Error(), "unexpected error: "); ok { // go-git has no type for it
			err = &serverError{line(text)}
		}
	}
	return n, err
}

// The listing of refs by protocol 2: gitprotocol-v2(5).

// isVersion2 reports whether an advertisement that begins like this is one of
// protocol 2. Over HTTP a line "# service=…" and a flush packet come first.
func isVersion2(head []byte) bool { return bytes.Contains(head, []byte("000eversion 2")) }

// checkVersion2 reads the capabilities of protocol 2. Every server of it lists
// refs.
func checkVersion2(r io.Reader) error {
	s := pktline.NewScanner(r)
	for seen := false; s.Scan(); {
		text := strings.TrimSpace(string(s.Bytes()))
		seen = seen || text == "version 2"
		if format, ok := strings.CutPrefix(text, "object-format="); ok {
			if err := checkFormat(format); err != nil {
				return err
			}
		}
		if text == "" && seen {
			return nil
		}
	}
	return scanError(s)
}

// lsRefs returns a request for refs that begin with one of names.
func lsRefs(names []string) ([]byte, error) {
	var body bytes.Buffer
	lines := pktline.NewEncoder(&body)
	err := lines.EncodeString("command=ls-refs\n", "agent="+agent+"\n")
	body.WriteString("0001") // the delimiter before arguments, which go-git cannot encode
	for _, name := range names {
		err = errors.Join(err, lines.Encodef("ref-prefix %s\n", name))
	}
	err = errors.Join(err, lines.Flush())
	return body.Bytes(), err
}

// readRefs reads the response to lsRefs: lines "<hash> <name>", then a flush.
// A prefix brings more names than were asked for.
func readRefs(r io.Reader, names []string) (Refs, error) {
	found := Refs{}
	s := pktline.NewScanner(r)
	for s.Scan() {
		text := strings.TrimSuffix(string(s.Bytes()), "\n")
		if text == "" {
			return found, nil
		}
		hash, name, _ := strings.Cut(text, " ")
		switch {
		case hash == "unborn":
		case !plumbing.IsHash(hash):
			return nil, &notGitError{fmt.Sprintf("unexpected ref %q", line(text))}
		case slices.Contains(names, name):
			found[name] = plumbing.NewHash(hash)
		}
	}
	return nil, scanError(s)
}

// scanError returns why a scan ended before its message did.
func scanError(s *pktline.Scanner) error {
	if s.Err() == nil {
		return protocolError(io.ErrUnexpectedEOF)
	}
	return protocolError(s.Err())
}
