// Package smallfile reads regular files of a bounded size. A named pipe or a
// device in the place of a secret or a ref would stop its reader for good.
package smallfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"dtesn-agent/schema/problem"
)

// Open opens the regular file at path, or the one that a link there leads to, to
// read it.
func Open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case info.IsDir():
		err = &os.PathError{Op: "open", Path: path, Err: syscall.EISDIR}
	case !info.Mode().IsRegular():
		err = &os.PathError{Op: "open", Path: path, Err: errors.New("it is no regular file")}
	default:
		return f, nil
	}
	_ = f.Close()
	return nil, err
}

// Read reads the regular file at path, or the one that a link there leads to, of
// at most limit bytes. The error does not repeat the path.
func Read(path string, limit int64) ([]byte, error) {
	f, err := Open(path)
	if err != nil {
		return nil, problem.Bare(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, problem.Bare(err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("it is larger than %d bytes", limit)
	}
	return data, nil
}

// BOM is the byte order mark of UTF-8, which some editors write.
var BOM = []byte("\xef\xbb\xbf")

// ReadText reads a text file without its byte order mark. UTF-16 is an error.
func ReadText(path string, limit int64) ([]byte, error) {
	data, err := Read(path, limit)
	if bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff")) {
		return nil, errors.New("it is UTF-16; save it as UTF-8")
	}
	return bytes.TrimPrefix(data, BOM), err
}
