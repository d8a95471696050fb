import { beforeEach, describe, expect, it } from 'vitest';
import { LcowError } from '../errors/index.js';
import { NetworkManager, type NetworkEndpoint, type NetworkGuest } from './network.js';

const endpoint = (id: string): NetworkEndpoint => ({
  id,
  macAddress: `02:00:00:00:00:0${id}`,
  addresses: ['10.0.2.15/24'],
  gateway: '10.0.2.2',
});

let log: string[];
let fails: string | undefined;
let networks: NetworkManager;
beforeEach(() => {
  log = [];
  fails = undefined;
  const step = async (text: string): Promise<void> => {
    if (text === fails) throw new LcowError('GUEST_FAILED', `${text} failed.`);
    log.push(text);
  };
  const guest: NetworkGuest = {
    addNamespace: async (id) => {
      await step(`add ${id}`);
      return `/run/netns/${id}`;
    },
    removeNamespace: (id) => step(`remove ${id}`),
    addAdapter: (id, { id: adapter }, name) => step(`join ${id} ${adapter} ${name}`),
    removeAdapter: (id, adapter) => step(`leave ${id} ${adapter}`),
  };
  networks = new NetworkManager(guest, [endpoint('1'), endpoint('2')]);
});

describe('network namespaces of a utility VM', () => {
  it('take adapters as eth0, eth1 and give them back before they go', async () => {
    expect(await networks.addNetNS('n')).toBe('/run/netns/n');
    await networks.addEndpointsToNS('n', [endpoint('1'), endpoint('2')]);
    await networks.removeNetNS('n');
    expect(log).toEqual(['add n', 'join n 1 eth0', 'join n 2 eth1', 'leave n 1', 'leave n 2', 'remove n']);
    await networks.addNetNS('n');
  });

  it('are added once, removed any number of times', async () => {
    const [first, second] = await Promise.allSettled([networks.addNetNS('n'), networks.addNetNS('n')]);
    expect([first.status, second.status]).toEqual(['fulfilled', 'rejected']);
    await expect(networks.addNetNS('n')).rejects.toMatchObject({ code: 'ALREADY_EXISTS' });
    await networks.removeNetNS('n');
    await networks.removeNetNS('n');
    await networks.removeNetNS('never');
  });

  it('skip adapters they have, and ignore those they have not', async () => {
    await networks.addNetNS('n');
    await networks.addEndpointsToNS('n', [endpoint('1')]);
    await networks.addEndpointsToNS('n', [endpoint('1'), endpoint('2')]);
    await networks.removeEndpointsFromNS('n', [{ id: '1' }, { id: 'none' }]);
    await networks.addEndpointsToNS('n', [endpoint('1')]);
    expect(log).toEqual(['add n', 'join n 1 eth0', 'join n 2 eth1', 'leave n 1', 'join n 1 eth0']);
  });

  it('refuse what is not there', async () => {
    await expect(networks.addEndpointsToNS('n', [])).rejects.toMatchObject({ code: 'NOT_FOUND' });
    await expect(networks.removeEndpointsFromNS('n', [])).rejects.toMatchObject({ code: 'NOT_FOUND' });
    await networks.addNetNS('n');
    await expect(networks.addEndpointsToNS('n', [endpoint('3')])).rejects.toMatchObject({ code: 'NOT_SUPPORTED' });
    await networks.addEndpointsToNS('n', [endpoint('1')]);
    await networks.addNetNS('m');
    await expect(networks.addEndpointsToNS('m', [endpoint('1')])).rejects.toMatchObject({ code: 'IN_USE' });
  });

  it('can be removed after a failure half-way', async () => {
    await networks.addNetNS('n');
    fails = 'join n 2 eth1';
    await expect(networks.addEndpointsToNS('n', [endpoint('1'), endpoint('2')])).rejects.toMatchObject({
      code: 'GUEST_FAILED',
    });
    fails = 'leave n 1';
    await expect(networks.removeNetNS('n')).rejects.toMatchObject({ code: 'GUEST_FAILED' });
    fails = undefined;
    await networks.removeNetNS('n');
    expect(log.slice(2)).toEqual(['leave n 1', 'remove n']);
  });

  it('that could not be made can be made again', async () => {
    fails = 'add n';
    await expect(networks.addNetNS('n')).rejects.toMatchObject({ code: 'GUEST_FAILED' });
    fails = undefined;
    await networks.addNetNS('n');
  });
});
