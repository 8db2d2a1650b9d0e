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

// A call bounds a listing or a fetch in time.
type call struct {
	ctx     context.Context
	cancel  context.CancelCauseFunc
	silence time.Duration // the longest time without a byte
}

// reader bounds what is read from r in bytes, and each read in time.
func (c *call) reader(r io.Reader, limit int64, what string) io.Reader {
	return &boundedReader{c: c, r: r, left: limit, limit: limit, what: what}
}

// A boundedReader fails, rather than ends, where too much comes, and cancels
// its call where nothing comes for too long.
type boundedReader struct {
	c           *call
	r           io.Reader
	left, limit int64
	what        string
	err         error
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.left <= 0 && b.err == nil {
		b.err = &tooLargeError{b.what, b.limit}
	}
	if b.err != nil {
		return 0, b.err
	}
	timer := time.AfterFunc(b.c.silence, func() { b.c.cancel(fmt.Errorf("%w %s", errSilent, b.c.silence)) })
	defer timer.Stop()
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		b.err = err
	}
	return n, err
}
