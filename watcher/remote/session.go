package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

var (
	errSlow   = errors.New("it took too long")
	errSilent = errors.New("the server was silent for")
)

// bounds are when an exchange ends at the latest.
type bounds struct {
	ctx     context.Context
	cancel  context.CancelCauseFunc
	silence time.Duration // without a byte
}

// A session is an exchange that lasts from a listing to the fetch that comes of
// it, so that a change costs one process of the server's.
type session struct {
	bounds
	exchange
	said *advert
}

func (s *session) end() {
	if s.exchange != nil {
		s.exchange.close()
	}
	s.cancel(nil)
}

// within does something in the session that is open, or in a new one, for at
// most limit. The session stays open if that goes well.
func (r *Remote) within(ctx context.Context, limit time.Duration, names []string, do func(*session) error) error {
	s := r.session
	if s == nil {
		s = &session{bounds: bounds{silence: r.patience.silence}}
		s.ctx, s.cancel = context.WithCancelCause(ctx)
		r.session = s
	}
	timer := time.AfterFunc(limit, func() { s.cancel(errSlow) })
	defer timer.Stop()
	err := r.begin(s, names)
	if err == nil {
		err = do(s)
	}
	if err != nil {
		if cause := context.Cause(s.ctx); cause != nil {
			err = cause // what was cut off says less
		}
		r.known = nil
		r.Rest()
	}
	return err
}

// begin opens a session's exchange and reads what the server says of itself.
func (r *Remote) begin(s *session, names []string) (err error) {
	if s.exchange != nil {
		return nil
	}
	if s.exchange, err = r.transport.open(s.bounds, r.known != nil); err != nil {
		s.exchange = nil
		return err
	}
	p := s.advert()
	if p == nil {
		s.said = r.known
		return nil
	}
	a, err := readAdvert(p, names)
	if err == nil {
		err = a.checkFormat()
	}
	if err != nil {
		return err
	}
	s.said, r.known = a, nil
	if a.version == 2 {
		r.known = a
	}
	return nil
}

// watched ends an exchange whose answer stays silent for too long.
type watched struct {
	bounds
	r     io.Reader
	timer *time.Timer
}

func (w *watched) Read(b []byte) (int, error) {
	if w.timer == nil {
		w.timer = time.AfterFunc(w.silence, func() { w.cancel(fmt.Errorf("%w %s", errSilent, w.silence)) })
	} else {
		w.timer.Reset(w.silence)
	}
	defer w.timer.Stop()
	return w.r.Read(b)
}
