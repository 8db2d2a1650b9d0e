package remote

import (
	"io"
	"time"
)

// goodbye is how long the end of an exchange may take.
const goodbye = time.Second

// A stream is an exchange over one connection in both directions, on which the
// server begins.
type stream struct {
	in    io.Writer
	out   *pktReader
	end   func() error // as one leaves
	abort func()       // whatever the other side does
	stop  func() bool  // of what aborts when the bounds are met
}

// newStream makes an exchange. stop takes back that abort is called when b
// ends.
func newStream(b bounds, in io.Writer, out io.Reader, end func() error, abort func(), stop func() bool) *stream {
	return &stream{
		in: in, end: end, abort: abort, stop: stop,
		out: newPktReader(bound(&watched{bounds: b, r: out}, maxListing+maxPack, "the answer")),
	}
}

func (s *stream) advert() *pktReader { return s.out }

func (s *stream) request(m message) (*pktReader, error) {
	_, err := s.in.Write(m)
	return s.out, err
}

// close says goodbye, so that the server does not log a broken connection. A
// server that does not listen is left.
func (s *stream) close() {
	if !s.stop() {
		return
	}
	timer := time.AfterFunc(goodbye, s.abort)
	defer timer.Stop()
	var bye message
	bye.mark(flush)
	_, _ = s.in.Write(bye)
	_ = s.end()
}
