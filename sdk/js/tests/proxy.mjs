/** A TCP proxy that cuts connections when it is told to. */

import { once } from "node:events";
import { connect, createServer } from "node:net";

/** @param {string} target An address such as http://127.0.0.1:8000. */
export async function startProxy(target) {
  const { hostname, port } = new URL(target);
  /** @type {Set<import("node:net").Socket>} */
  const sockets = new Set();
  let numConnections = 0;
  const server = createServer((client) => {
    numConnections++;
    const upstream = connect(Number(port), hostname);
    for (const [one, other] of [
      [client, upstream],
      [upstream, client],
    ]) {
      sockets.add(one);
      one.pipe(other);
      one.on("error", () => {}); // it was cut
      one.on("close", () => {
        sockets.delete(one);
        other.destroy();
      });
    }
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("it does not listen");
  return {
    url: `http://127.0.0.1:${address.port}`,
    numConnections: () => numConnections,
    cut() {
      for (const socket of [...sockets]) socket.destroy(); // not resetAndDestroy, over which Node may spin for ever
    },
    close() {
      this.cut();
      server.close();
    },
  };
}
