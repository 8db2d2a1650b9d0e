package remote

import (
	"context"
	"errors"
	"fmt"
)

// tcpTransport speaks to git's own port: gitprotocol-pack(5), "Git Transport".
type tcpTransport struct{ at address }

func (t *tcpTransport) close() {}

func (t *tcpTransport) secrets() []string { return nil }

func (t *tcpTransport) explain(error) error { return nil }

func (t *tcpTransport) open(b bounds, _ bool) (exchange, error) {
	conn, err := dial(b.ctx, t.at.hostPort("9418"))
	if err != nil {
		return nil, err
	}
	abort := func() { _ = conn.Close() }
	stop := context.AfterFunc(b.ctx, abort)
	text := fmt.Sprintf("git-upload-pack %s\x00host=%s\x00\x00version=2\x00", t.at.path, t.at.host)
	if _, err := fmt.Fprintf(conn, "%04x%s", len(text)+4, text); err != nil {
		stop()
		return nil, errors.Join(err, conn.Close())
	}
	return newStream(b, conn, conn, conn.Close, abort, stop), nil
}
