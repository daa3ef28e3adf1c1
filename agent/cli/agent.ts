/** `keelson agent`: be a node. */
import { parseArgs } from 'node:util';

export const usage = `keelson agent [--config FILE] [--kubeconfig FILE] [--hostname-override NAME] [--node-ip ADDRESS]
              [--container-runtime-endpoint unix:///PATH]
              [--image-credential-provider-config PATH --image-credential-provider-bin-dir FOLDER]

Be a node until SIGTERM or SIGINT; containers go on without the agent. Without --kubeconfig only the static pods of the
configuration's staticPodPath run. With --container-runtime-endpoint the containers and images are those of another runtime
(containerd, CRI-O) and the one inside keelson is not opened. The configuration is a KubeletConfiguration (kubelet.config.k8s.io/v1beta1).`;

export async function run(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      config: { type: 'string' },
      kubeconfig: { type: 'string' },
      'hostname-override': { type: 'string' },
      'node-ip': { type: 'string' },
      'container-runtime-endpoint': { type: 'string' },
      'image-credential-provider-config': { type: 'string' },
      'image-credential-provider-bin-dir': { type: 'string' },
    },
  });
  const { startAgent } = await import('../main.ts');
  await startAgent({
    configFile: values.config,
    kubeconfigFile: values.kubeconfig,
    nodeName: values['hostname-override'],
    nodeIp: values['node-ip'],
    containerRuntimeEndpoint: values['container-runtime-endpoint'],
    imageCredentialProviderConfig: values['image-credential-provider-config'],
    imageCredentialProviderBinDir: values['image-credential-provider-bin-dir'],
  });
}
