package remote

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// The pkt-line format of git's gitprotocol-common(5): four hex digits that
// count themselves, then the payload. Lengths below four are marks.
type mark int

const (
	data      mark = iota // a payload
	flush                 // 0000: the end of a message
	delimiter             // 0001: the end of a section, in version 2
	endOfResp             // 0002: the end of a response, stateless version 2
)

// maxPkt is the most a pkt-line may hold, its length included.
const maxPkt = 65520

// A pktReader reads pkt-lines.
type pktReader struct {
	r   *bufio.Reader
	buf []byte
}

func newPktReader(r io.Reader) *pktReader {
	return &pktReader{r: bufio.NewReaderSize(r, 32<<10)}
}

// next reads one pkt-line. The payload is good until the next call. An ERR
// line, by which a server says why it will not, is an error. The end of the
// stream is io.EOF only where a pkt-line might begin.
func (p *pktReader) next() ([]byte, mark, error) {
	var head [4]byte
	if _, err := io.ReadFull(p.r, head[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("the answer was cut short: %w", err)
		}
		return nil, data, err
	}
	n, err := strconv.ParseUint(string(head[:]), 16, 16)
	if err != nil || n == 3 || n > maxPkt {
		return nil, data, &notGitError{fmt.Sprintf("the answer begins with %q", head)}
	}
	if n < 4 {
		return nil, mark(n + 1), nil
	}
	n -= 4
	if uint64(cap(p.buf)) < n {
		p.buf = make([]byte, maxPkt)
	}
	p.buf = p.buf[:n]
	if _, err := io.ReadFull(p.r, p.buf); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("the answer was cut short: %w", io.ErrUnexpectedEOF)
		}
		return nil, data, err
	}
	if text, ok := strings.CutPrefix(string(p.buf[:min(n, 4)]), "ERR "); ok && text == "" {
		return nil, data, &serverError{line(p.buf[4:])}
	}
	return p.buf, data, nil
}

// text is next for lines of text, without the line feed that may end them.
func (p *pktReader) text() (string, mark, error) {
	b, m, err := p.next()
	return strings.TrimSuffix(string(b), "\n"), m, err
}

// A message collects pkt-lines that are sent at once.
type message []byte

func (m *message) line(format string, args ...any) {
	text := fmt.Sprintf(format, args...) + "\n"
	*m = fmt.Appendf(*m, "%04x%s", len(text)+4, text)
}

func (m *message) mark(k mark) { *m = fmt.Appendf(*m, "%04x", int(k)-1) }
