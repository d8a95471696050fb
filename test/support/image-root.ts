import { mkdtemp, readFile, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ImageStore } from '../../src/images/index.js';
import { LayerFolder } from './layer-folder.js';

/** A data root with an image store over a {@link LayerFolder}. */
export class ImageRoot implements AsyncDisposable {
  readonly folder: string;
  readonly driver: LayerFolder;
  readonly store: ImageStore;

  private constructor(folder: string, driver: LayerFolder, store: ImageStore) {
    this.folder = folder;
    this.driver = driver;
    this.store = store;
  }

  static async open(folder?: string): Promise<ImageRoot> {
    const root = folder ?? (await mkdtemp(join(tmpdir(), 'lcow-images-')));
    const driver = new LayerFolder(join(root, 'layers'));
    const store = await ImageStore.open({ content: join(root, 'content'), locks: join(root, 'locks') }, driver);
    return new ImageRoot(root, driver, store);
  }

  get content(): string {
    return join(this.folder, 'content');
  }

  /** Names of the blobs, sorted. */
  async blobs(): Promise<string[]> {
    return (await readdir(join(this.content, 'blobs', 'sha256')).catch(() => [])).sort();
  }

  /** Names of unfinished downloads and spools. */
  async ingests(): Promise<string[]> {
    return readdir(join(this.content, 'ingest')).catch(() => []);
  }

  async leases(): Promise<string[]> {
    return readdir(join(this.content, 'leases')).catch(() => []);
  }

  async indexJson(): Promise<{ manifests: { digest: string; annotations?: Record<string, string> }[] }> {
    return JSON.parse(await readFile(join(this.content, 'index.json'), 'utf8')) as Awaited<
      ReturnType<ImageRoot['indexJson']>
    >;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.folder, { recursive: true, force: true });
  }
}
