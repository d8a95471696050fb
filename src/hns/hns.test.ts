import { describe, expect, it } from 'vitest';
import {
  addNamespaceEndpoint,
  createNamespace,
  createNatEndpoint,
  hostnameFile,
  hostsFile,
  listNamespaceEndpoints,
  listNamespaces,
  randomMacAddress,
  removeNamespace,
  removeNamespaceEndpoint,
  resolvConf,
} from './index.js';

describe('a NAT endpoint', () => {
  it('has the addresses of QEMU user-mode networking', () => {
    expect(createNatEndpoint({ hostname: 'web' })).toMatchObject({
      addresses: ['10.0.2.15/24'],
      gateway: '10.0.2.2',
      dns: ['10.0.2.3'],
      hostname: 'web',
      backend: { Type: 'User', Network: '10.0.2.0/24' },
    });
  });

  it('has an id and a MAC address of its own', () => {
    const [one, two] = [createNatEndpoint(), createNatEndpoint()];
    expect(one.id).not.toBe(two.id);
    expect(one.macAddress).not.toBe(two.macAddress);
  });

  it('has a locally administered unicast MAC address', () => {
    for (let i = 0; i < 200; i++) expect(randomMacAddress()).toMatch(/^[0-9a-f][26ae](:[0-9a-f]{2}){5}$/);
  });

  it('keeps a MAC address that is given, and refuses one that may belong to a real card or a group', () => {
    expect(createNatEndpoint({ macAddress: '02:00:00:AA:BB:CC' }).macAddress).toBe('02:00:00:aa:bb:cc');
    for (const macAddress of ['00:11:22:33:44:55', '03:00:00:00:00:01', '02-00-00-00-00-01', '02:00:00:00:00', ''])
      expect(() => createNatEndpoint({ macAddress })).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });
});

describe('a network namespace', () => {
  it('lists its endpoints in the order in which they were added', () => {
    const namespace = createNamespace();
    const endpoints = [createNatEndpoint(), createNatEndpoint(), createNatEndpoint()];
    for (const endpoint of endpoints) addNamespaceEndpoint(namespace, endpoint);
    expect(listNamespaceEndpoints(namespace)).toEqual(endpoints);
    removeNamespaceEndpoint(namespace, endpoints[1]!.id);
    removeNamespaceEndpoint(namespace, endpoints[1]!.id);
    expect(listNamespaceEndpoints(namespace)).toEqual([endpoints[0], endpoints[2]]);
    removeNamespace(namespace);
    expect(listNamespaces()).not.toContain(namespace);
  });

  it('takes an endpoint once', () => {
    const namespace = createNamespace();
    const endpoint = createNatEndpoint();
    addNamespaceEndpoint(namespace, endpoint);
    expect(() => addNamespaceEndpoint(namespace, endpoint)).toThrow(
      expect.objectContaining({ code: 'ALREADY_EXISTS' }),
    );
    removeNamespace(namespace);
  });

  it('is not found after its removal, and its removal may be repeated', () => {
    const namespace = createNamespace();
    removeNamespace(namespace);
    removeNamespace(namespace);
    removeNamespaceEndpoint(namespace, 'none');
    for (const use of [
      () => listNamespaceEndpoints(namespace),
      () => addNamespaceEndpoint(namespace, createNatEndpoint()),
    ])
      expect(use).toThrow(expect.objectContaining({ code: 'NOT_FOUND' }));
  });
});

describe('the name files of a container', () => {
  const endpoint = createNatEndpoint({ dnsSearch: ['corp.example'] });

  it('have the hosts that docker writes, the host by its gateway, and the container by its address', () => {
    expect(hostsFile('web', [endpoint], [{ address: '192.0.2.7', names: ['db', 'db.corp'] }])).toBe(
      [
        '127.0.0.1\tlocalhost',
        '::1\tlocalhost ip6-localhost ip6-loopback',
        'fe00::\tip6-localnet',
        'ff00::\tip6-mcastprefix',
        'ff02::1\tip6-allnodes',
        'ff02::2\tip6-allrouters',
        '192.0.2.7\tdb db.corp',
        '10.0.2.2\thost.docker.internal host.lcow.internal',
        '10.0.2.15\tweb',
        '',
      ].join('\n'),
    );
  });

  it('name no host and no address without a network', () => {
    expect(hostsFile('web', [])).not.toMatch(/web|internal/);
    expect(resolvConf([])).toBe('');
  });

  it('list each name server and search domain once, three servers at most', () => {
    const other = { ...endpoint, dns: ['10.0.2.3', '192.0.2.1', '192.0.2.2', '192.0.2.3'], dnsSearch: ['a.example'] };
    expect(resolvConf([endpoint, other])).toBe(
      'nameserver 10.0.2.3\nnameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch corp.example a.example\n',
    );
  });

  it('end the hostname with a line feed', () => {
    expect(hostnameFile('web')).toBe('web\n');
  });
});
