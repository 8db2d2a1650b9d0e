package schema

import (
	"regexp"
	"slices"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"
)

// The names of the files of a configuration directory.
const (
	// BaseFile holds the shared defaults.
	BaseFile       = "base.yaml"
	templatePrefix = "templates/"
	fileSuffix     = ".yaml"
)

// Limits of a configuration.
const (
	// MaxFileBytes is the most that one file may hold.
	MaxFileBytes = 64 << 10
	// MaxDocumentBytes and MaxDocumentFiles bound all files together.
	MaxDocumentBytes = 256 << 10
	MaxDocumentFiles = 64
)

// An Environment is one of those that the schema lists; the embedded one has
// development, staging, production and testing.
type Environment string

// File returns the path of the environment's file: "production.yaml".
func (e Environment) File() string { return string(e) + fileSuffix }

func templateFile(name string) string { return templatePrefix + name + fileSuffix }

// A template's name has no slash and no dot: it cannot leave templates/.
var templateName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)

// ParseTemplatePath returns the name of the template at a path such as
// "templates/high-throughput.yaml", and whether extends could name it.
func ParseTemplatePath(path string) (name string, ok bool) {
	name = strings.TrimSuffix(strings.TrimPrefix(path, templatePrefix), fileSuffix)
	return name, path == templateFile(name) && templateName.MatchString(name)
}

// A File is one file of a configuration.
type File struct {
	// Path is relative to the configuration root, with slashes:
	// "templates/high-throughput.yaml".
	Path  string
	Bytes []byte
	// Refused is why a source did not take the bytes, worded to follow "the file":
	// "is a link that leaves the configuration directory". What follows a "; " is
	// the hint, if replacing it by a regular file is not what helps.
	Refused string

	parsed func() (node, *Violations) // nil if NewFile did not make it
}

// NewFile returns a File that is parsed once, however often it is loaded. The
// bytes must not change afterwards.
func NewFile(path string, text []byte) File {
	return File{path, text, "", sync.OnceValues(func() (node, *Violations) { return parse(path, text) })}
}

func (f *File) parse() (node, *Violations) {
	if f.parsed == nil {
		return parse(f.Path, f.Bytes)
	}
	return f.parsed()
}

// Extends lists the files that an environment's file extends, such as
// "templates/high-throughput.yaml": its well-formed entries, in order, each once.
func Extends(environmentFile File) (paths []string) {
	root, _ := environmentFile.parse()
	if root.Node == nil || root.Kind != yaml.MappingNode {
		return nil
	}
	for pair := range slices.Chunk(root.Content, 2) {
		if key, value := root.pair(pair[0], pair[1]); key.Value == keyExtends && key.Kind != 0 {
			for _, template := range new(loader).extends(value) {
				paths = append(paths, templateFile(template.Value))
			}
		}
	}
	return paths
}
