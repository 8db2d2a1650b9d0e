package test

import (
	"bytes"
	"cmp"
	"context"
	setting "flag" // flag is a type of this package
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/test/gitserver"
)

var screenshots = setting.String("screenshots", "", "the directory into which TestScreenshots writes the images of the documents; a temporary one if not given")

// maxImage bounds an image of the documents, in bytes.
const maxImage = 150 << 10

// TestScreenshots takes the images of the documents, of an agent that applied, was
// went back, was refused and holds. What differs from run to run is replaced: times, and
// names of temporary files.
func TestScreenshots(t *testing.T) {
	t.Parallel()
	needs(t, "chromium", "git")
	dir := *screenshots
	if dir == "" {
		dir = t.TempDir()
	}
	r := newBareRig(t)
	program := shippedAgent(t)
	r.serve(exec.Command(program, "engine", "--socket", r.socket, "--memory-limit", "7MiB", "--environment", "production"))
	gitserver.Git(t, r.config, "init", "-q", "-b", "main")
	commits := 0
	nextSecond := func() { // else several records have one time
		now := time.Now().Unix()
		r.until("the next second", func() bool { return time.Now().Unix() > now })
	}
	commit := func(author, subject string, size, ttl int) {
		t.Helper()
		nextSecond()
		r.write("production.yaml", fmt.Sprintf("environment: production\nparameters:\n  %s: %d\n  %s: %d\n", sizeName, size, ttlName, ttl))
		gitserver.Git(t, r.config, "add", "-A")
		commits++
		at := fmt.Sprintf("2026-03-02T09:%02d:00Z", commits)
		cmd := exec.Command("git", "-c", "user.name="+author, "-c", "user.email="+strings.ToLower(author)+"@example.com", "commit", "-q", "-m", subject)
		cmd.Dir, cmd.Env = r.config, append(os.Environ(), "GIT_AUTHOR_DATE="+at, "GIT_COMMITTER_DATE="+at, "GIT_CONFIG_GLOBAL="+os.DevNull, "GIT_CONFIG_SYSTEM="+os.DevNull)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	applied := func(author, subject string, size, ttl int) {
		t.Helper()
		commit(author, subject, size, ttl)
		r.await(subject, func(v view) bool { return v.InSync && v.size() == size && v.ttl() == ttl })
	}
	commit("Ada", "Serve with the defaults", 512, 300)
	port, err := freePort()
	ok(t, err)
	r.port = port
	cmd := exec.Command(program, "run", "--environment", "production", "--repo", r.config, "--config", ".", "--engine", r.socket,
		"--state", r.state, "--instance", "server-1", "--listen", "127.0.0.1:"+port)
	r.running = r.process(cmd)
	r.await("the first state", func(v view) bool { return v.InSync })
	applied("Ada", "Keep answers for 15 minutes", 512, 900)
	applied("Grace", "Double the reservoir", 1024, 900)
	applied("Ada", "One more step", 2048, 900)
	nextSecond()
	r.order("rollback", "--reason", "p99 doubled", "--hold", sizeName)
	r.await("held", func(v view) bool { return v.State == apply.StateHeld && v.size() == 1024 })
	commit("Grace", "Try the largest reservoir", 8192, 900)
	r.await("rejected", func(v view) bool {
		return v.State == apply.StateHeld && v.Attempted.Outcome == record.Rejected && v.size() == 1024
	})

	b := newBrowser(t)
	b.steps(chromedp.Navigate("http://127.0.0.1:" + port + "/"))
	r.until("the page is live", func() bool { return is[string](b, `document.getElementById("live").textContent`) == ", live" })
	for _, shot := range []struct {
		name, scheme, top string
		width, height     int64
	}{
		{"page-light", "light", "top", 1100, 880}, {"page-dark", "dark", "tried", 1100, 880}, {"page-phone", "light", "top", 390, 844},
	} {
		b.media("prefers-color-scheme", shot.scheme)
		b.steps(chromedp.EmulateViewport(shot.width, shot.height))
		is[bool](b, example(r))
		is[bool](b, `scrollTo(0, document.getElementById("`+shot.top+`").offsetTop - 16), true`)
		var text []byte
		b.do(func(ctx context.Context) (err error) {
			text, err = chromedp.Run(ctx, chromedp.CaptureScreenshot())
			return err
		})
		text = small(t, text)
		if len(text) > maxImage {
			t.Errorf("%s has %d bytes", shot.name, len(text))
		}
		ok(t, os.MkdirAll(dir, 0o755))
		ok(t, os.WriteFile(filepath.Join(dir, shot.name+".png"), text, 0o644))
	}
}

// example is a script that gives a page the times and names of an example: the newest
// times are minutes of one morning, in their order.
func example(r *rig) string {
	names := fmt.Sprintf("[[%q, %q], [%q, %q], [%q, %q]]", r.config, "/srv/dtesn-config", r.state, "/var/lib/dtesn-agent", r.socket, "/run/dtesn/engine.sock")
	return `(() => {
	const names = ` + names + `, time = /\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ/g, id = /snapshot_\d+_/g
	const times = [...new Set(document.body.innerHTML.match(time))].sort()
	const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
	for (let n = walk.nextNode(); n; n = walk.nextNode()) {
		let s = n.data.replace(time, t => "2026-03-02 09:" + String(times.indexOf(t) + 1).padStart(2, "0") + ":00Z").replace(id, "snapshot_1772442000_")
		for (const [from, to] of names) s = s.replaceAll(from, to)
		if (s !== n.data) n.data = s
	}
	return true
})()`
}

// small returns a PNG in 256 colours: its most frequent ones of 32 levels each.
func small(t *testing.T, text []byte) []byte {
	t.Helper()
	full, err := png.Decode(bytes.NewReader(text))
	ok(t, err)
	area, counts := full.Bounds(), map[color.RGBA]int{}
	rounded := image.NewRGBA(area)
	level := func(v uint32) uint8 { return uint8((v>>8*31 + 127) / 255 * 255 / 31) }
	for y := area.Min.Y; y < area.Max.Y; y++ {
		for x := area.Min.X; x < area.Max.X; x++ {
			r, g, b, _ := full.At(x, y).RGBA()
			c := color.RGBA{level(r), level(g), level(b), 255}
			rounded.SetRGBA(x, y, c)
			counts[c]++
		}
	}
	var palette color.Palette
	for _, c := range slices.SortedFunc(maps.Keys(counts), func(a, b color.RGBA) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a.R, b.R), cmp.Compare(a.G, b.G), cmp.Compare(a.B, b.B))
	}) {
		palette = append(palette, c)
	}
	reduced := image.NewPaletted(area, palette[:min(len(palette), 256)])
	draw.Draw(reduced, area, rounded, area.Min, draw.Src)
	var b bytes.Buffer
	ok(t, (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&b, reduced))
	return b.Bytes()
}

// anchors returns the anchors of a page's headings, as git hosts make them.
func anchors(page string) (list []string) {
	page = regexp.MustCompile("(?ms)^```.*?^```").ReplaceAllString(page, "")
	for _, m := range regexp.MustCompile(`(?m)^#+ +(.+?) *$`).FindAllStringSubmatch(page, -1) {
		anchor := regexp.MustCompile(`[^\p{L}\p{N}_ -]`).ReplaceAllString(strings.ToLower(m[1]), "")
		list = append(list, strings.ReplaceAll(anchor, " ", "-"))
	}
	return list
}

// TestReadmeLinks holds that each relative link of the documents leads to a file and a
// heading that exist, that images are small, and that none is left over.
func TestReadmeLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:\s]*)(?:#([^)\s]+))?\)`)
	linked := map[string]bool{}
	links := 0
	ok(t, filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && path != ".." && strings.HasPrefix(d.Name(), ".") {
			return filepath.SkipDir
		}
		if err != nil || filepath.Ext(path) != ".md" {
			return err
		}
		text, err := os.ReadFile(path)
		ok(t, err)
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			links++
			to := path
			if m[1] != "" {
				to = filepath.Join(filepath.Dir(path), m[1])
			}
			linked[to] = true
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s refers to %s, which does not exist", path, m[1])
			} else if m[2] != "" {
				text, err := os.ReadFile(to)
				ok(t, err)
				if !slices.Contains(anchors(string(text)), m[2]) {
					t.Errorf("%s refers to %s#%s, a heading that does not exist", path, m[1], m[2])
				}
			}
		}
		return nil
	}))
	if links < 80 {
		t.Errorf("only %d links found", links)
	}
	images, err := filepath.Glob("../docs/images/*")
	ok(t, err)
	for _, image := range images {
		info, err := os.Stat(image)
		ok(t, err)
		if !linked[image] || info.Size() > maxImage {
			t.Errorf("%s has %d bytes, and a document shows it: %v", image, info.Size(), linked[image])
		}
	}
	if len(images) == 0 {
		t.Error("there are no images: make screenshots")
	}
	pages, err := filepath.Glob("../docs/*.md")
	ok(t, err)
	readme, err := os.ReadFile("../README.md")
	ok(t, err)
	for _, page := range pages {
		if !strings.Contains(string(readme), "](docs/"+filepath.Base(page)) {
			t.Errorf("README.md does not lead to %s", page)
		}
	}
}
