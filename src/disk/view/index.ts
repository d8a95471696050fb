/** The files of layers and chains of layers, and what a layer changes, without a VM. */
export { FileView, openView, type ViewEntry, type ViewLayer } from './file-view.js';
export { changes, diffSize, type Change, type ChangeKind } from './changes.js';
