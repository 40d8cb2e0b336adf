// A real Bluesky PDS on loopback with a PLC directory beside it: node pds.mjs FOLDER PLC_PORT PORT
import { PDS, envToCfg, envToSecrets } from '@atproto/pds'
import plc from '@did-plc/server'
import { mkdirSync } from 'node:fs'

const [folder, plcPort, port] = process.argv.slice(2)

mkdirSync(`${folder}/data`)
const directory = plc.PlcServer.create({ db: plc.Database.mock(), port: Number(plcPort) })
await directory.start()

const env = {
  devMode: true,
  hostname: 'localhost',
  port: Number(port),
  dataDirectory: `${folder}/data`,
  blobstoreDiskLocation: `${folder}/blobs`,
  didPlcUrl: `http://127.0.0.1:${plcPort}`,
  serviceHandleDomains: ['.test'],
  inviteRequired: false,
  rateLimitsEnabled: true,
  adminPassword: 'admin',
  jwtSecret: 'f'.repeat(32),
  plcRotationKeyK256PrivateKeyHex: '1'.repeat(64),
}
const pds = await PDS.create(envToCfg(env), envToSecrets(env))
await pds.start()
console.log('serving')
