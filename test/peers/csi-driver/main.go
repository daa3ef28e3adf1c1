// A CSI driver with real file systems and devices, made with the published bindings: what a node is tried with where the
// drivers of others cannot be had. Volumes are ext4 on loop devices below -state; inline ones, and those with the attribute
// medium=memory, are tmpfs: not every machine lets an ext4 grow that is mounted. It prints each call of its node service
// as a line of JSON.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

var (
	name     = flag.String("name", "", "name of the driver")
	endpoint = flag.String("endpoint", "", "socket of the driver")
	register = flag.String("register", "", "socket to register with")
	state    = flag.String("state", "", "folder of the volumes")
	nodeID   = flag.String("node", "", "id of the node")
)

const tmpfs = 0x01021994

type driver struct {
	csi.UnimplementedNodeServer
	registration.UnimplementedRegistrationServer
	mutex sync.Mutex
}

func (d *driver) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type: registration.CSIPlugin, Name: *name, Endpoint: *endpoint, SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (d *driver) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	say("NotifyRegistrationStatus", s)
	return &registration.RegistrationStatusResponse{}, nil
}

func (d *driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{
		NodeId:             *nodeID,
		MaxVolumesPerNode:  16,
		AccessibleTopology: &csi.Topology{Segments: map[string]string{"topology.test.example/node": *nodeID}},
	}, nil
}

func (d *driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	answer := &csi.NodeGetCapabilitiesResponse{}
	for _, one := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
	} {
		answer.Capabilities = append(answer.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: one}},
		})
	}
	return answer, nil
}

func (d *driver) NodeStageVolume(_ context.Context, r *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	if r.VolumeId == "" || r.StagingTargetPath == "" || r.VolumeCapability == nil {
		return nil, status.Error(codes.InvalidArgument, "something is missing")
	}
	if r.VolumeContext["medium"] == "memory" {
		if isMounted(r.StagingTargetPath) {
			return &csi.NodeStageVolumeResponse{}, nil
		}
		size := "size=" + r.VolumeContext["bytes"]
		if err := syscall.Mount("tmpfs", r.StagingTargetPath, "tmpfs", 0, size); err != nil {
			return nil, failed(err)
		}
		return &csi.NodeStageVolumeResponse{}, nil
	}
	device, err := attach(r.VolumeId, r.VolumeContext["bytes"])
	if err != nil {
		return nil, failed(err)
	}
	if r.VolumeCapability.GetBlock() != nil || isMounted(r.StagingTargetPath) {
		return &csi.NodeStageVolumeResponse{}, nil
	}
	if run("blkid", "-p", device) != nil {
		if err := run("mkfs.ext4", "-q", "-m0", device); err != nil {
			return nil, failed(err)
		}
	}
	if err := syscall.Mount(device, r.StagingTargetPath, "ext4", 0, ""); err != nil {
		return nil, failed(err)
	}
	return &csi.NodeStageVolumeResponse{}, nil
}

func (d *driver) NodeUnstageVolume(_ context.Context, r *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	if isMounted(r.StagingTargetPath) {
		if err := syscall.Unmount(r.StagingTargetPath, 0); err != nil {
			return nil, failed(err)
		}
	}
	if device := loop(r.VolumeId); device != "" {
		if err := run("losetup", "-d", device); err != nil {
			return nil, failed(err)
		}
	}
	return &csi.NodeUnstageVolumeResponse{}, nil
}

func (d *driver) NodePublishVolume(_ context.Context, r *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	if r.VolumeId == "" || r.TargetPath == "" || r.VolumeCapability == nil {
		return nil, status.Error(codes.InvalidArgument, "something is missing")
	}
	if isMounted(r.TargetPath) {
		return &csi.NodePublishVolumeResponse{}, nil
	}
	source := r.StagingTargetPath
	if r.VolumeCapability.GetBlock() != nil {
		source = loop(r.VolumeId)
		if err := os.WriteFile(r.TargetPath, nil, 0o600); err != nil {
			return nil, failed(err)
		}
	} else if err := os.MkdirAll(r.TargetPath, 0o750); err != nil {
		return nil, failed(err)
	}
	if r.VolumeContext["csi.storage.k8s.io/ephemeral"] == "true" {
		if err := syscall.Mount("tmpfs", r.TargetPath, "tmpfs", 0, "mode=0777"); err != nil {
			return nil, failed(err)
		}
		text := r.VolumeContext["csi.storage.k8s.io/pod.name"]
		if err := os.WriteFile(filepath.Join(r.TargetPath, "pod"), []byte(text), 0o644); err != nil {
			return nil, failed(err)
		}
	} else if err := syscall.Mount(source, r.TargetPath, "", syscall.MS_BIND, ""); err != nil {
		return nil, failed(err)
	}
	if r.Readonly {
		flags := uintptr(syscall.MS_BIND | syscall.MS_REMOUNT | syscall.MS_RDONLY)
		if err := syscall.Mount("", r.TargetPath, "", flags, ""); err != nil {
			return nil, failed(err)
		}
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

func (d *driver) NodeUnpublishVolume(_ context.Context, r *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if isMounted(r.TargetPath) {
		if err := syscall.Unmount(r.TargetPath, 0); err != nil {
			return nil, failed(err)
		}
	}
	if err := os.Remove(r.TargetPath); err != nil && !os.IsNotExist(err) {
		return nil, failed(err)
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

func (d *driver) NodeGetVolumeStats(_ context.Context, r *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	var facts syscall.Statfs_t
	if err := syscall.Statfs(r.VolumePath, &facts); err != nil {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	size := facts.Bsize
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{
			Unit: csi.VolumeUsage_BYTES, Total: int64(facts.Blocks) * size, Available: int64(facts.Bavail) * size,
			Used: int64(facts.Blocks-facts.Bfree) * size,
		},
		{
			Unit: csi.VolumeUsage_INODES, Total: int64(facts.Files), Available: int64(facts.Ffree),
			Used: int64(facts.Files - facts.Ffree),
		},
	}}, nil
}

func (d *driver) NodeExpandVolume(_ context.Context, r *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	bytes := r.GetCapacityRange().GetRequiredBytes()
	var facts syscall.Statfs_t
	if err := syscall.Statfs(r.VolumePath, &facts); err == nil && facts.Type == tmpfs {
		if err := syscall.Mount("", r.StagingTargetPath, "", syscall.MS_REMOUNT, fmt.Sprintf("size=%d", bytes)); err != nil {
			return nil, failed(err)
		}
		return &csi.NodeExpandVolumeResponse{CapacityBytes: bytes}, nil
	}
	if err := os.Truncate(image(r.VolumeId), bytes); err != nil {
		return nil, failed(err)
	}
	device := loop(r.VolumeId)
	if err := run("losetup", "-c", device); err != nil {
		return nil, failed(err)
	}
	if r.VolumeCapability.GetBlock() == nil {
		if err := run("resize2fs", device); err != nil {
			return nil, failed(err)
		}
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: bytes}, nil
}

func failed(err error) error { return status.Error(codes.Internal, err.Error()) }

func image(id string) string { return filepath.Join(*state, filepath.Base(id)+".img") }

func loop(id string) string {
	text, err := exec.Command("losetup", "-n", "-O", "NAME", "-j", image(id)).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(strings.SplitN(string(text), "\n", 2)[0])
}

func attach(id, bytes string) (string, error) {
	if device := loop(id); device != "" {
		return device, nil
	}
	if _, err := os.Stat(image(id)); os.IsNotExist(err) {
		size, err := strconv.ParseInt(bytes, 10, 64)
		if err != nil {
			return "", fmt.Errorf("the volume's attribute bytes: %w", err)
		}
		file, err := os.Create(image(id))
		if err != nil {
			return "", err
		}
		defer file.Close()
		if err := file.Truncate(size); err != nil {
			return "", err
		}
	}
	if err := run("losetup", "-f", image(id)); err != nil {
		return "", err
	}
	return loop(id), nil
}

func isMounted(path string) bool {
	text, err := os.ReadFile("/proc/self/mountinfo")
	return err == nil && strings.Contains(string(text), " "+path+" ")
}

func run(program string, args ...string) error {
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, out)
	}
	return nil
}

func say(method string, request any) {
	line, _ := json.Marshal(map[string]any{"method": method, "request": request})
	fmt.Println(string(line))
}

func listen(path string) net.Listener {
	_ = os.Remove(path)
	listener, err := net.Listen("unix", path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return listener
}

func main() {
	flag.Parse()
	own := &driver{}
	note := func(ctx context.Context, r any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		own.mutex.Lock()
		defer own.mutex.Unlock()
		answer, err := next(ctx, r)
		said := map[string]any{"request": r}
		if err != nil {
			said["error"] = err.Error()
		}
		say(filepath.Base(info.FullMethod), said)
		return answer, err
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(note))
	csi.RegisterNodeServer(server, own)
	listener := listen(*endpoint)
	go func() { _ = server.Serve(listener) }()
	registrar := grpc.NewServer()
	registration.RegisterRegistrationServer(registrar, own)
	_ = registrar.Serve(listen(*register))
}
