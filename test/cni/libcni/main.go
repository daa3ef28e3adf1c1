// Runs one call of libcni, the CNI project's own library: libcni COMMAND LIST CACHE PLUGINS CONTAINER NETNS [JSON].
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

func main() {
	list, err := libcni.NetworkConfFromFile(os.Args[2])
	fail(err)
	cni := libcni.NewCNIConfigWithCacheDir([]string{os.Args[4]}, os.Args[3], nil)
	rt := &libcni.RuntimeConf{
		ContainerID: os.Args[5],
		NetNS:       os.Args[6],
		IfName:      "eth0",
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", "shop"},
			{"K8S_POD_NAME", "web"},
			{"K8S_POD_INFRA_CONTAINER_ID", os.Args[5]},
			{"K8S_POD_UID", "11111111-2222-3333-4444-555555555555"},
		},
	}
	if len(os.Args) > 7 {
		fail(json.Unmarshal([]byte(os.Args[7]), &rt.CapabilityArgs))
	}
	ctx := context.Background()
	var out any
	switch os.Args[1] {
	case "add":
		out, err = cni.AddNetworkList(ctx, list, rt)
	case "check":
		err = cni.CheckNetworkList(ctx, list, rt)
	case "del":
		err = cni.DelNetworkList(ctx, list, rt)
	case "gc":
		valid := []types.GCAttachment{{ContainerID: os.Args[5], IfName: "eth0"}}
		err = cni.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid})
	case "status":
		err = cni.GetStatusNetworkList(ctx, list)
	case "result":
		out, err = cni.GetNetworkListCachedResult(list, rt)
	case "attachments":
		out, err = cni.GetCachedAttachments(os.Args[5])
	case "config":
		_, rt, err = cni.GetNetworkListCachedConfig(list, rt)
		out = rt
	}
	fail(err)
	text, err := json.Marshal(out)
	fail(err)
	fmt.Println(string(text))
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
