package remote

import (
	"context"
	"io"
)

// A stream is an exchange over one connection in both directions, on which the
// server begins.
type stream struct {
	in   io.Writer
	out  *pktReader
	end  func() error
	stop func() bool
}

// newStream makes an exchange that ends when b does.
func newStream(b bounds, in io.Writer, out io.Reader, end func() error) *stream {
	return &stream{
		in: in, end: end,
		stop: context.AfterFunc(b.ctx, func() { _ = end() }),
		out:  newPktReader(bound(&watched{bounds: b, r: out}, maxListing+maxPack, "the answer")),
	}
}

func (s *stream) advert() *pktReader { return s.out }

func (s *stream) request(m message) (*pktReader, error) {
	_, err := s.in.Write(m)
	return s.out, err
}

// close says goodbye, so that the server does not log a broken connection.
func (s *stream) close() {
	if !s.stop() {
		return
	}
	var bye message
	bye.mark(flush)
	_, _ = s.in.Write(bye)
	_ = s.end()
}
