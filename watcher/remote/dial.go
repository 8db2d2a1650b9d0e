package remote

import (
	"context"
	"net"
	"time"
)

// dial makes a TCP connection that acknowledges at once what it receives.
// Servers of git send an answer in several small writes, of which TCP holds
// each but the first back until the one before is acknowledged (RFC 896); a
// kernel waits with that for up to 40 ms (RFC 1122, 4.2.3.2).
func dial(ctx context.Context, addr string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &prompt{TCPConn: conn.(*net.TCPConn)}, nil
}

type prompt struct{ *net.TCPConn }

func (p *prompt) Read(b []byte) (int, error) {
	quickAck(p.TCPConn) // the kernel forgets it now and then: tcp(7), TCP_QUICKACK
	return p.TCPConn.Read(b)
}
