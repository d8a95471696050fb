/**
 * Fields of HCS schema 2.1 that this engine knows of and cannot honour. They are refused by name, so that nobody
 * believes a limit or a device to be there that is not. `*` stands for any key.
 */
export const KNOWN_FIELDS: Readonly<Record<string, readonly string[]>> = {
  '': ['HostingSystemId', 'HostedSystem', 'Container'],
  VirtualMachine: [
    'RestoreState',
    'RegistryChanges',
    'StorageQoS',
    'RunInSilo',
    'DebugOptions',
    'GuestConnection',
    'GuestState',
    'SecuritySettings',
    'Version',
  ],
  'VirtualMachine.Chipset': [
    'Uefi',
    'IsNumLockDisabled',
    'BaseBoardSerialNumber',
    'ChassisSerialNumber',
    'ChassisAssetTag',
    'UseUtc',
  ],
  'VirtualMachine.ComputeTopology': ['Numa'],
  'VirtualMachine.ComputeTopology.Memory': [
    'HotHintPageCount',
    'LowMMIOGapInMB',
    'HighMMIOBaseInMB',
    'HighMMIOGapInMB',
    'SlitType',
    'Backing',
    'BackingPageSize',
    'EnablePrivateCompressionStore',
    'EnableEpf',
    'SharedMemoryMB',
    'SharedMemoryAccessSids',
  ],
  'VirtualMachine.ComputeTopology.Processor': [
    'Limit',
    'Weight',
    'Reservation',
    'CpuGroup',
    'NumaProcessorsSettings',
    'ExposeVirtualizationExtensions',
    'EnablePerfmonPmu',
    'EnablePerfmonPebs',
    'EnablePerfmonLbr',
    'EnablePerfmonIpt',
    'SynchronizeHostFeatures',
    'EnableSchedulerAssist',
    'SmtMode',
  ],
  'VirtualMachine.Devices': [
    'VideoMonitor',
    'Keyboard',
    'Mouse',
    'Rdp',
    'GuestCrashReporting',
    'VirtualSmb',
    'Plan9',
    'VirtualPMem',
    'VirtualPci',
    'HvSocket',
    'FlexibleIov',
    'SharedMemory',
    'EnhancedModeVideo',
    'KernelIntegration',
    'Licensing',
    'Battery',
    'PersistentMemory',
  ],
  'VirtualMachine.Devices.Scsi.*.Attachments.*': [
    'ExtensibleVirtualDiskType',
    'IgnoreFlushes',
    'CachingMode',
    'NoWriteHardening',
    'DisableExpansionOptimization',
    'IgnoreRelativeLocator',
    'CaptureIoAttributionContext',
  ],
  'VirtualMachine.Devices.NetworkAdapters.*': ['InterruptModeration', 'IovSettings', 'ConnectionState'],
  'VirtualMachine.Devices.ComPorts': ['1', '2', '3'],
  'VirtualMachine.Devices.ComPorts.*': ['OptimizeForDebugger'],
};

/** Whether HCS has a field of this name in the object at this path. */
export function isKnownField(path: readonly string[], name: string): boolean {
  return Object.entries(KNOWN_FIELDS).some(([pattern, names]) => {
    const parts = pattern === '' ? [] : pattern.split('.');
    return (
      parts.length === path.length &&
      parts.every((part, index) => part === '*' || part === path[index]) &&
      names.includes(name)
    );
  });
}
