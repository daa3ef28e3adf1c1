// Command streaming is the client side of kubectl's exec, attach and port-forward, for tests: client-go's own code on a
// URL of a streaming server.
//
//	streaming exec -url URL -transport spdy|websocket [-protocols a,b] [-stdin] [-stdout] [-stderr] [-tty] [-sizes 80x24,100x30]
//	streaming forward -url URL -transport spdy|websocket -ports 0:80
//
// exec copies its own standard streams and ends with the exit code of the command; 125 and a message on standard error
// for every other failure. The next size of the terminal is sent when a line of standard input says "resize\n"; the
// first one at once. forward writes client-go's messages to standard output and goes on until its input ends.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
)

type sizes struct {
	next chan remotecommand.TerminalSize
}

func (s *sizes) Next() *remotecommand.TerminalSize {
	size, ok := <-s.next
	if !ok {
		return nil
	}
	return &size
}

func fail(err error) {
	var exit exec.CodeExitError
	if errors.As(err, &exit) {
		os.Exit(exit.Code)
	}
	fmt.Fprintln(os.Stderr, "failed:", err)
	os.Exit(125)
}

func main() {
	if len(os.Args) < 2 {
		fail(errors.New("exec or forward"))
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	where := flags.String("url", "", "")
	transport := flags.String("transport", "spdy", "")
	protocols := flags.String("protocols", "", "")
	stdin := flags.Bool("stdin", false, "")
	stdout := flags.Bool("stdout", false, "")
	stderr := flags.Bool("stderr", false, "")
	tty := flags.Bool("tty", false, "")
	list := flags.String("sizes", "", "")
	ports := flags.String("ports", "", "")
	_ = flags.Parse(os.Args[2:])
	target, err := url.Parse(*where)
	if err != nil {
		fail(err)
	}
	config := &rest.Config{Host: target.Scheme + "://" + target.Host, TLSClientConfig: rest.TLSClientConfig{Insecure: target.Scheme == "https"}}
	if token := os.Getenv("STREAMING_TOKEN"); token != "" {
		config.BearerToken = token
	}
	if os.Args[1] == "forward" {
		forward(config, target, *transport, strings.Split(*ports, ","))
		return
	}
	executor, err := makeExecutor(config, target, *transport, *protocols)
	if err != nil {
		fail(err)
	}
	options := remotecommand.StreamOptions{Tty: *tty}
	queue := &sizes{next: make(chan remotecommand.TerminalSize, 16)}
	var later []remotecommand.TerminalSize
	for _, text := range strings.Split(*list, ",") {
		var size remotecommand.TerminalSize
		if n, _ := fmt.Sscanf(text, "%dx%d", &size.Width, &size.Height); n == 2 {
			later = append(later, size)
		}
	}
	if len(later) > 0 {
		options.TerminalSizeQueue = queue
		queue.next <- later[0]
		later = later[1:]
	}
	if *stdin {
		options.Stdin = os.Stdin
		if len(later) > 0 {
			options.Stdin = watch(os.Stdin, func() {
				if len(later) > 0 {
					queue.next <- later[0]
					later = later[1:]
				}
			})
		}
	}
	if *stdout {
		options.Stdout = os.Stdout
	}
	if *stderr {
		options.Stderr = os.Stderr
	}
	if err := executor.StreamWithContext(context.Background(), options); err != nil {
		fail(err)
	}
}

func makeExecutor(config *rest.Config, target *url.URL, transport, protocols string) (remotecommand.Executor, error) {
	var names []string
	if protocols != "" {
		names = strings.Split(protocols, ",")
	}
	if transport == "websocket" {
		if names == nil {
			return remotecommand.NewWebSocketExecutor(config, http.MethodGet, target.String())
		}
		return remotecommand.NewWebSocketExecutorForProtocols(config, http.MethodGet, target.String(), names...)
	}
	if names == nil {
		return remotecommand.NewSPDYExecutor(config, http.MethodPost, target)
	}
	round, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	return remotecommand.NewSPDYExecutorForProtocols(round, upgrader, http.MethodPost, target, names...)
}

// watch takes the lines "resize" out of the input.
func watch(from io.Reader, resize func()) io.Reader {
	reader, writer := io.Pipe()
	go func() {
		lines := bufio.NewReader(from)
		for {
			line, err := lines.ReadString('\n')
			if line == "resize\n" {
				resize()
			} else if line != "" {
				_, _ = io.WriteString(writer, line)
			}
			if err != nil {
				_ = writer.CloseWithError(err)
				return
			}
		}
	}()
	return reader
}

func forward(config *rest.Config, target *url.URL, transport string, ports []string) {
	round, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		fail(err)
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: round}, http.MethodPost, target)
	if transport == "websocket" {
		if dialer, err = portforward.NewSPDYOverWebsocketDialer(target, config); err != nil {
			fail(err)
		}
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	forwarder, err := portforward.New(dialer, ports, stop, ready, os.Stdout, os.Stdout)
	if err != nil {
		fail(err)
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	if err := forwarder.ForwardPorts(); err != nil {
		fail(err)
	}
}
