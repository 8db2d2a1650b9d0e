package remote

import (
	"context"
	"io"
)

// A stream is an exchange over one connection in both directions, on which the
// server begins.
type stream struct {
	in     io.Writer
	out    *pktReader
	cancel context.CancelFunc
	end    func() error
	stop   func() bool
}

// newStream makes an exchange that ends when ctx does.
func newStream(ctx context.Context, in io.Writer, out io.Reader, end func() error) *stream {
	ctx, cancel := context.WithCancel(ctx)
	s := &stream{in: in, cancel: cancel, end: end}
	s.stop = context.AfterFunc(ctx, func() { _ = end() })
	s.out = newPktReader(bound(&watched{r: out, ctx: ctx, cancel: cancel}, maxListing+maxPack, "the answer"))
	return s
}

func (s *stream) advert() *pktReader { return s.out }

func (s *stream) request(m message) (*pktReader, error) {
	_, err := s.in.Write(m)
	return s.out, err
}

// close says goodbye, so that the server does not log a broken connection.
func (s *stream) close() {
	var bye message
	bye.mark(flush)
	_, _ = s.in.Write(bye)
	if s.stop() {
		_ = s.end()
	}
	s.cancel()
}
