package test

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

const manifest = "../examples/kubernetes/dtesn.yaml"

// kustomize renders the examples where kubectl is missing: Debian 12 packages
// only one that is too old.
const kustomize = "sigs.k8s.io/kustomize/kustomize/v5@v5.7.1"

// A deployment is what `kubectl apply -k examples/kubernetes` would send.
type deployment struct {
	set           appsv1.StatefulSet
	service       corev1.Service
	config        corev1.ConfigMap
	agent, server *corev1.Container
}

// kustomized decodes what kustomize makes of the examples; a field that
// Kubernetes does not know is an error.
func kustomized(t *testing.T) *deployment {
	t.Helper()
	render := exec.Command("kubectl", "kustomize", "../examples/kubernetes")
	if _, err := exec.LookPath("kubectl"); err != nil {
		if out, err := exec.Command("go", "run", kustomize, "version").CombinedOutput(); err != nil {
			lacking(t, "needs kubectl or kustomize, and cannot build the latter: "+string(out))
		}
		render = exec.Command("go", "run", kustomize, "build", "../examples/kubernetes")
	}
	d := &deployment{}
	kinds := map[string]any{"StatefulSet": &d.set, "Service": &d.service, "ConfigMap": &d.config}
	for doc := range strings.SplitSeq(outputOf(t, render), "\n---\n") {
		var meta metav1.TypeMeta
		must(t, yaml.Unmarshal([]byte(doc), &meta))
		into := kinds[meta.Kind]
		if into == nil {
			t.Fatalf("%q comes twice, or is not expected", meta.Kind)
		}
		delete(kinds, meta.Kind)
		must(t, yaml.UnmarshalStrict([]byte(doc), into))
	}
	if len(kinds) > 0 {
		t.Fatalf("missing: %v", kinds)
	}
	pod := &d.set.Spec.Template.Spec
	if len(pod.InitContainers) != 1 || len(pod.Containers) != 1 {
		t.Fatalf("%d init containers and %d containers, one each expected", len(pod.InitContainers), len(pod.Containers))
	}
	d.agent, d.server = &pod.InitContainers[0], &pod.Containers[0]
	return d
}

// flag is the value of --name=value, or of --name value, in a command line.
func flag(t *testing.T, line []string, name string) string {
	t.Helper()
	for i, arg := range line {
		if value, ok := strings.CutPrefix(arg, "--"+name+"="); ok {
			return value
		}
		if arg == "--"+name && i+1 < len(line) {
			return line[i+1]
		}
	}
	t.Fatalf("no --%s in %q", name, line)
	return ""
}

// TestPodRestricted holds the manifest against the Pod Security Standard
// `restricted` (kubernetes.io/docs/concepts/security/pod-security-standards).
func TestPodRestricted(t *testing.T) {
	d := kustomized(t)
	pod := &d.set.Spec.Template.Spec
	s := pod.SecurityContext
	if s == nil || s.RunAsNonRoot == nil || !*s.RunAsNonRoot || s.SeccompProfile == nil || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault ||
		s.RunAsUser != nil && *s.RunAsUser == 0 || len(s.Sysctls) > 0 || s.SELinuxOptions != nil || s.AppArmorProfile != nil {
		t.Errorf("the pod's security context: %+v", s)
	}
	if pod.HostNetwork || pod.HostPID || pod.HostIPC {
		t.Error("the pod shares namespaces of the host")
	}
	for _, v := range pod.Volumes {
		if v.ConfigMap == nil && v.EmptyDir == nil {
			t.Errorf("volume %s is neither a ConfigMap nor an emptyDir", v.Name)
		}
	}
	for _, c := range []*corev1.Container{d.agent, d.server} {
		s := c.SecurityContext
		switch {
		case s == nil:
			t.Errorf("%s has no security context", c.Name)
		case s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation, s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem,
			s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(s.Capabilities.Add) > 0,
			s.Privileged != nil, s.RunAsUser != nil, s.RunAsNonRoot != nil, s.SeccompProfile != nil, s.ProcMount != nil, s.SELinuxOptions != nil, s.AppArmorProfile != nil:
			t.Errorf("%s: %+v", c.Name, s)
		}
		for _, p := range c.Ports {
			if p.HostPort != 0 {
				t.Errorf("%s takes port %d of the host", c.Name, p.HostPort)
			}
		}
	}
}

// TestPodAgrees holds that the parts of the manifest fit each other, the
// agent's flags, and its budget.
func TestPodAgrees(t *testing.T) {
	d := kustomized(t)
	pod, a := &d.set.Spec.Template.Spec, d.agent
	if a.RestartPolicy == nil || *a.RestartPolicy != corev1.ContainerRestartPolicyAlways {
		t.Error("the agent is no sidecar: an init container that ends would be needed for the server to start")
	}
	if pod.EnableServiceLinks == nil || *pod.EnableServiceLinks {
		t.Error("variables of Services would be taken for settings of the agent")
	}
	_, help := agent(a.Args[0], "--help")
	for _, arg := range a.Args[1:] {
		name, _, _ := strings.Cut(arg, "=")
		if !strings.Contains(help, name+" ") {
			t.Errorf("agent %s has no %s", a.Args[0], name)
		}
	}
	d.probesAgree(t)
	engine := flag(t, a.Args, "engine")
	if uds := flag(t, d.server.Command, "uds"); uds != engine {
		t.Errorf("the server listens on %s, the agent looks at %s", uds, engine)
	}
	if n := flag(t, d.server.Command, "workers"); n != "1" {
		t.Errorf("%s workers have %[1]s configurations", n)
	}
	for where, want := range map[string]string{flag(t, a.Args, "config"): "config", path.Dir(flag(t, a.Args, "state")): "state", path.Dir(engine): "engine"} {
		i := slices.IndexFunc(a.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == where })
		if i < 0 || a.VolumeMounts[i].Name != want || a.VolumeMounts[i].SubPath+a.VolumeMounts[i].SubPathExpr != "" || a.VolumeMounts[i].ReadOnly != (want == "config") {
			t.Errorf("%s is not the volume %s mounted whole", where, want)
		}
	}
	for what, l := range map[string][2]resource.Quantity{
		"cpu request":    {*a.Resources.Requests.Cpu(), resource.MustParse("50m")},
		"memory request": {*a.Resources.Requests.Memory(), resource.MustParse("64Mi")},
		"memory limit":   {*a.Resources.Limits.Memory(), resource.MustParse("256Mi")},
	} {
		if l[0].IsZero() || l[0].Cmp(l[1]) > 0 {
			t.Errorf("%s is %s, %s is enough", what, l[0].String(), l[1].String())
		}
	}
	if !a.Resources.Limits.Cpu().IsZero() {
		t.Error("a limit of cpu slows the agent when it matters")
	}
	if s := d.service.Spec; s.ClusterIP != "None" || d.service.Name != d.set.Spec.ServiceName || !slices.ContainsFunc(a.Ports, func(p corev1.ContainerPort) bool {
		return p.ContainerPort == s.Ports[0].Port && strings.HasSuffix(flag(t, a.Args, "health-listen"), fmt.Sprintf(":%d", p.ContainerPort))
	}) {
		t.Errorf("the Service does not lead to the agent's metrics: %+v", s)
	}
}

func (d *deployment) probesAgree(t *testing.T) {
	t.Helper()
	a := d.agent
	for name, p := range map[string]struct {
		probe *corev1.Probe
		asks  string
	}{"startup": {a.StartupProbe, "--live"}, "liveness": {a.LivenessProbe, "--live"}, "readiness": {a.ReadinessProbe, "--ready"}} {
		if p.probe == nil || p.probe.Exec == nil || !slices.Contains(p.probe.Exec.Command, p.asks) ||
			flag(t, p.probe.Exec.Command, "state") != flag(t, a.Args, "state") || p.probe.TimeoutSeconds <= 5 {
			t.Errorf("the %s probe does not ask the agent %s on its state directory, or gives up before the agent does: %+v", name, p.asks, p.probe)
		}
	}
}

// laidOut writes the ConfigMap into dir as its volume's items have it.
func (d *deployment) laidOut(t *testing.T, dir string) {
	t.Helper()
	source := d.configVolume(t)
	if len(source.Items) != len(d.config.Data) || len(d.config.BinaryData) > 0 {
		t.Errorf("the volume has %d items, the ConfigMap %d keys", len(source.Items), len(d.config.Data))
	}
	for _, item := range source.Items {
		text, ok := d.config.Data[item.Key]
		if !ok {
			t.Errorf("the volume wants %s, which the ConfigMap does not have: the pod would not start", item.Key)
		}
		to := filepath.Join(dir, item.Path)
		must(t, os.MkdirAll(filepath.Dir(to), 0o755))
		must(t, os.WriteFile(to, []byte(text), 0o644))
	}
}

func (d *deployment) configVolume(t *testing.T) *corev1.ConfigMapVolumeSource {
	t.Helper()
	for _, v := range d.set.Spec.Template.Spec.Volumes {
		if v.ConfigMap != nil {
			if v.ConfigMap.Name != "dtesn-config" || d.config.Name != "dtesn-config" || v.ConfigMap.Optional != nil {
				t.Errorf("the volume is of %q, the ConfigMap is %q, and not dtesn-config: a name that changes with the content restarts pods", v.ConfigMap.Name, d.config.Name)
			}
			return v.ConfigMap
		}
	}
	t.Fatal("no volume of a ConfigMap")
	return nil
}

// TestPodConfig holds that the pod sees examples/config, whole and valid.
func TestPodConfig(t *testing.T) {
	d := kustomized(t)
	dir := t.TempDir()
	d.laidOut(t, dir)
	if code, out := agent("validate", dir); code != 0 {
		t.Errorf("what the pod sees is not valid: exit %d\n%s", code, out)
	}
	files := 0
	must(t, fs.WalkDir(os.DirFS("../examples/config"), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || filepath.Ext(name) != ".yaml" {
			return err
		}
		files++
		want, err := os.ReadFile(filepath.Join("../examples/config", name))
		if got, gotErr := os.ReadFile(filepath.Join(dir, name)); gotErr != nil || string(got) != string(want) {
			t.Errorf("the pod does not see %s (%v): list it in examples/config/Kustomization and in the volume's items", name, gotErr)
		}
		return err
	}))
	if files < 9 || files != len(d.config.Data) {
		t.Errorf("%d files, and the ConfigMap has %d", files, len(d.config.Data))
	}
}

// TestPodWithClaim holds that the lines for a persistent volume, once taken,
// stand for the volume of the state.
func TestPodWithClaim(t *testing.T) {
	text, err := os.ReadFile(manifest)
	must(t, err)
	doc, _, _ := strings.Cut(regexp.MustCompile(`(?m)^  #(  .*|\S.*)$`).ReplaceAllString(string(text), "  $1"), "\n---\n")
	var set appsv1.StatefulSet
	must(t, yaml.UnmarshalStrict([]byte(doc), &set))
	claims := set.Spec.VolumeClaimTemplates
	if len(claims) != 1 || !slices.ContainsFunc(set.Spec.Template.Spec.InitContainers[0].VolumeMounts, func(m corev1.VolumeMount) bool {
		return m.Name == claims[0].Name && m.MountPath == path.Dir(flag(t, set.Spec.Template.Spec.InitContainers[0].Args, "state"))
	}) {
		t.Errorf("the claims %+v are not for the state", claims)
	}
}

// A runningPod is the manifest's pod, run by hand: volumes are directories,
// containers are processes in jails.
type runningPod struct {
	*deployment
	t                 *testing.T
	volumes           string
	swaps             int
	inAgent, inServer *jail
	cmd               *exec.Cmd // the agent
	log               *lockedBuffer
}

func (d *deployment) start(t *testing.T) *runningPod {
	p := &runningPod{deployment: d, t: t, volumes: t.TempDir(), log: &lockedBuffer{}}
	image := t.TempDir()
	copyShipped(t, filepath.Join(image, "agent"))
	for _, v := range d.set.Spec.Template.Spec.Volumes {
		dir := filepath.Join(p.volumes, v.Name)
		must(t, os.Mkdir(dir, 0o755))
		if v.EmptyDir != nil {
			must(t, os.Chmod(dir, 0o777)) // as the kubelet makes them
		}
	}
	p.updateConfig()
	jails := map[*corev1.Container]**jail{d.agent: &p.inAgent, d.server: &p.inServer}
	for c, in := range jails {
		*in = newJail(t, image)
		for _, m := range c.VolumeMounts {
			(*in).volume(filepath.Join(p.volumes, m.Name), m.MountPath, m.ReadOnly)
		}
		(*in).lock()
	}
	return p
}

// updateConfig writes the ConfigMap's data as the kubelet does: a new
// directory, `..data` swapped by a rename, the old directory removed.
func (p *runningPod) updateConfig() {
	p.t.Helper()
	p.swaps++
	volume := filepath.Join(p.volumes, "config")
	fresh := fmt.Sprintf("..2026_01_01_00_00_00.%09d", p.swaps)
	p.laidOut(p.t, filepath.Join(volume, fresh))
	data := filepath.Join(volume, "..data")
	old, _ := os.Readlink(data)
	must(p.t, os.Symlink(fresh, data+"_tmp"))
	must(p.t, os.Rename(data+"_tmp", data))
	if old != "" {
		must(p.t, os.RemoveAll(filepath.Join(volume, old)))
		return
	}
	entries, err := os.ReadDir(data)
	must(p.t, err)
	for _, e := range entries {
		must(p.t, os.Symlink(filepath.Join("..data", e.Name()), filepath.Join(volume, e.Name())))
	}
}

// startAgent runs the agent's container, but for the ports, which this machine
// has only once.
func (p *runningPod) startAgent() {
	p.t.Helper()
	args := []string{"/agent"}
	for _, arg := range p.agent.Args {
		if strings.HasPrefix(arg, "--health-listen=") {
			arg = "--health-listen=:0"
		}
		args = append(args, arg)
	}
	env := []string{"DTESN_AGENT_LISTEN=127.0.0.1:0"}
	for _, v := range p.agent.Env {
		if v.ValueFrom == nil || v.ValueFrom.FieldRef == nil || v.ValueFrom.FieldRef.FieldPath != "metadata.name" {
			p.t.Fatalf("%+v is not the pod's name", v)
		}
		env = append(env, v.Name+"=dtesn-0")
	}
	p.cmd = p.inAgent.command(env, args...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	must(p.t, p.cmd.Start())
	cmd := p.cmd
	p.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
}

// startServer runs the reference engine where the server would be.
func (p *runningPod) startServer() *exec.Cmd {
	p.t.Helper()
	cmd := p.inServer.command(nil, "/agent", "engine", "--socket", flag(p.t, p.server.Command, "uds"))
	must(p.t, cmd.Start())
	p.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

// probe runs a probe as the kubelet does; "" is a success.
func (p *runningPod) probe(probe *corev1.Probe) string {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Duration(probe.TimeoutSeconds)*time.Second)
	defer cancel()
	cmd := p.inAgent.command(nil, probe.Exec.Command...)
	var out lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	must(p.t, cmd.Start())
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	if err := cmd.Wait(); err != nil {
		return fmt.Sprintf("%v: %s", err, out.String())
	}
	return ""
}

// status is the agent's, asked for in its container.
func (p *runningPod) status() (s statusAnswer) {
	p.t.Helper()
	out := outputOf(p.t, p.inAgent.command(nil, "/agent", "status", "--json", "--state", flag(p.t, p.agent.Args, "state")))
	must(p.t, json.Unmarshal([]byte(out), &s))
	return s
}

func (p *runningPod) awaitRuns(state, parameter string, value float64) {
	p.t.Helper()
	waitFor(p.t, func() string {
		if s := p.status(); s.Status.State != state || s.Status.Current[parameter] != value {
			return fmt.Sprintf("%s, and %s is %v; the log:\n%s", s.Status.State, parameter, s.Status.Current[parameter], p.log.String())
		}
		return ""
	})
}

// declare changes the production file of the ConfigMap.
func (p *runningPod) declare(from, to string) {
	p.t.Helper()
	before := p.config.Data["production.yaml"]
	if !strings.Contains(before, from) {
		p.t.Fatalf("production.yaml has no %q", from)
	}
	p.config.Data["production.yaml"] = strings.Replace(before, from, to, 1)
	p.updateConfig()
}

// TestPodRuns runs the pod's shape, in the kubelet's order, with its probes:
// any user, no capabilities, read-only root directories, a ConfigMap volume
// that is swapped.
func TestPodRuns(t *testing.T) {
	needsRoot(t)
	d := kustomized(t)
	t.Parallel()
	p := d.start(t)
	p.startAgent()
	waitFor(t, func() string { return p.probe(d.agent.StartupProbe) }) // the server waits for this
	p.inAgent.confined(p.cmd.Process.Pid)
	if p.probe(d.agent.ReadinessProbe) == "" {
		t.Error("ready without a server")
	}
	server := p.startServer()
	waitFor(t, func() string { return p.probe(d.agent.ReadinessProbe) })

	p.awaitRuns("in_sync", "max_membrane_depth", 8)
	p.declare("max_membrane_depth: 8", "max_membrane_depth: 6")
	p.awaitRuns("in_sync", "max_membrane_depth", 6)
	p.declare("max_membrane_depth: 6", "max_membrane_depth: 600")
	p.awaitRuns("invalid", "max_membrane_depth", 6)
	if wrong := p.probe(d.agent.ReadinessProbe); wrong != "" {
		t.Errorf("a pod whose server runs the last good set must keep its traffic: %s", wrong)
	}
	p.declare("max_membrane_depth: 600", "max_membrane_depth: 7")
	p.awaitRuns("in_sync", "max_membrane_depth", 7)

	must(t, server.Process.Kill())
	_ = server.Wait()
	waitFor(t, func() string {
		if p.probe(d.agent.ReadinessProbe) == "" {
			return "ready without its server"
		}
		return p.probe(d.agent.LivenessProbe)
	})
	p.startServer()
	waitFor(t, func() string { return p.probe(d.agent.ReadinessProbe) })
	p.awaitRuns("in_sync", "max_membrane_depth", 7)
	p.fits()

	before := time.Now()
	must(t, p.cmd.Process.Signal(syscall.SIGTERM))
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("the end: %v\n%s", err, p.log.String())
	}
	if grace := time.Duration(*d.set.Spec.Template.Spec.TerminationGracePeriodSeconds) * time.Second; time.Since(before) > grace {
		t.Errorf("the end took longer than %s", grace)
	}
	p.startAgent() // the container is started again in the same pod
	waitFor(t, func() string { return p.probe(d.agent.ReadinessProbe) })
	if out := outputOf(t, p.inAgent.command(nil, "/agent", "snapshots", "--state", flag(t, d.agent.Args, "state"))); strings.Count(out, "applied") < 3 {
		t.Errorf("the history is gone:\n%s", out)
	}
}

// fits holds that what the agent takes is what it asks for.
func (p *runningPod) fits() {
	p.t.Helper()
	proc, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	must(p.t, err)
	m := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindStringSubmatch(string(proc))
	if m == nil {
		p.t.Fatalf("no VmRSS in %s", proc)
	}
	rss, asked := resource.MustParse(m[1]+"Ki"), p.agent.Resources.Requests.Memory()
	if rss.Cmp(*asked) > 0 {
		p.t.Errorf("takes %s, asks for %s", rss.String(), asked.String())
	}
	p.t.Logf("memory: %s of the %s asked for", rss.String(), asked.String())
}

// TestPodServiceLinks holds why enableServiceLinks is off: what Kubernetes
// would announce of a Service named dtesn-agent is refused as a setting.
func TestPodServiceLinks(t *testing.T) {
	t.Setenv("DTESN_AGENT_PORT", "tcp://10.0.0.1:9311")
	if code, out := agent("run", "--environment", "production"); code != 2 || !strings.Contains(out, "DTESN_AGENT_PORT") {
		t.Errorf("exit %d: %s", code, out)
	}
}
