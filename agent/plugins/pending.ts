/** Credentials for a unix socket that also give up connections on which nothing was ever said. */
import type { Socket } from 'node:net';
import { type ChannelCredentials, credentials } from '@grpc/grpc-js';

/**
 * As `createInsecure`. The gRPC library waits for ever for the first words of a server, also when the channel was closed:
 * a plugin that takes connections and says nothing would get one more with each attempt.
 */
export function patientCredentials(): ChannelCredentials {
  const plain = credentials.createInsecure();
  return Object.assign(Object.create(plain) as ChannelCredentials, {
    _createSecureConnector(...args: Parameters<ChannelCredentials['_createSecureConnector']>) {
      const connector = plain._createSecureConnector(...args);
      const sockets = new Set<Socket>();
      return {
        ...connector,
        connect(socket: Socket) {
          sockets.add(socket);
          socket.once('close', () => sockets.delete(socket));
          return connector.connect(socket);
        },
        /** Called when nobody uses the connection any more. One that was spoken over is ended by the library. */
        destroy() {
          for (const socket of sockets) if (socket.bytesRead === 0) socket.destroy();
          connector.destroy();
        },
      };
    },
  });
}
