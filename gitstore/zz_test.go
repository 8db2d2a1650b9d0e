package gitstore
import ("testing";"time";"slices";"fmt";"os";"path/filepath"
"github.com/go-git/go-git/v5/plumbing")
func TestZZ(t *testing.T){
 s,_:=newFixture(t).open()
 applied(t,s,1024)
 var p,r,c []time.Duration
 var ref,wt,rn []time.Duration
 for i:=range 400 {
  a:=time.Now(); snap,_:=s.prepare(benchChange(i)); b:=time.Now(); s.append(snap,false); d:=time.Now()
  s.repo.cache.put(plumbing.NewHash(snap.Commit),snap); s.head,s.headTime=snap,s.commitTime
  confirm(t,s); e:=time.Now()
  p=append(p,b.Sub(a)); r=append(r,d.Sub(b)); c=append(c,e.Sub(d))
  x:=time.Now(); tmp,_:=writeTemp(s.repo.tmp(),[]byte("hello"),0o444); y:=time.Now(); os.Rename(tmp,filepath.Join(s.repo.dir,"objects/zz")); z:=time.Now()
  wt=append(wt,y.Sub(x)); rn=append(rn,z.Sub(y))
  x=time.Now(); s.objects.encode(plumbing.BlobObject, make([]byte,2000)); ref=append(ref,time.Since(x))
 }
 for n,l:=range map[string][]time.Duration{"prepare":p,"append":r,"confirm":c,"writetemp":wt,"rename":rn,"encode":ref}{ slices.Sort(l); fmt.Println(n,l[len(l)/2],l[len(l)*99/100])}
}
